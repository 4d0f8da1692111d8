"""The definition of `backward_to_rows`, against autograd."""

import pytest
import torch
from torch.nn.functional import linear

from rvi_fast import RowLayout, reference, testing
from rvi_fast.reference import fused_step
from rvi_fast.testing import BackwardToRowsCase


class TestContract(testing.BackwardToRowsContract):
    dtypes = (torch.float32, torch.float64)


@pytest.mark.parametrize("hidden", [(), (5,), (8, 3, 7)])
@pytest.mark.parametrize("form", ["linear", "cluster"])
def test_gradients_of_the_definition_are_those_of_autograd(hidden, form):
    contract = testing.BackwardToRowsContract()
    case = BackwardToRowsCase(20, 11, 6, (5, 9), hidden, form, pieces=3)
    inputs = contract.inputs(case, torch.float64)
    rows, relays = (inputs[name].clone().requires_grad_() for name in ("rows", "relays"))
    weights = [weight.clone().requires_grad_() for weight in inputs["weights"]]
    biases = [torch.randn(len(w), dtype=torch.float64, requires_grad=True) for w in weights]
    layout = RowLayout.resolve(6, case.groups, 0.5, form)
    z, kl = reference.relay_sample(rows, relays, inputs["index"], inputs["seed"], layout=layout)
    values = [z]
    for weight, bias in zip(weights, biases, strict=True):
        values.append(linear(values[-1], weight, bias).relu())
    likelihood = (values[-1] * inputs["grad_hidden"].sum(0)).sum()
    parameters = [rows, relays, *(p for pair in zip(weights, biases, strict=True) for p in pair)]
    expected = torch.autograd.grad(
        likelihood + inputs["kl_weight"] * kl.sum() / inputs["full_size"], parameters
    )

    # without momentum the first moment is the gradient
    inputs |= {"hidden": [value.detach() for value in values[1:]], "beta1": 0.0}
    got = contract.call(testing.Implementation("reference", fused_step), inputs)
    index = inputs["index"]
    testing.assert_close([got["exp_avg"][index]], [expected[0][index]])
    grads = [got[f"grad_{number}"] for number in range(len(parameters) - 1)]
    testing.assert_close(grads, expected[1:])
