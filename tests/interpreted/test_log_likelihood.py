import math

import pytest
import torch

from rvi_fast import kernels, reference, testing

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class TestContract(testing.LogLikelihoodContract):
    implementations = (testing.Implementation("triton-interpreter", kernels),)
    dtypes = FLOATS


def test_float64_is_left_to_the_reference():
    contract = testing.LogLikelihoodContract()
    for function in contract.functions:
        inputs = contract.inputs(function, contract.cases[1], torch.float64)
        arguments = [inputs[name] for name in testing._arguments(function)]
        assert getattr(kernels, function)(*arguments) is NotImplemented


@pytest.mark.parametrize("packed", [False, True])
def test_nan_where_the_mask_says_observed_gives_nan(packed):
    x, mean = torch.zeros(3, 40), torch.ones(1, 3, 40)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[0, 35], mask[2] = False, False
    x[0, 35] = x[1, 39] = x[2, 3] = math.nan
    mean[0, 0, 35] = mean[0, 2, 7] = math.inf
    mask = reference.pack_bits(mask) if packed else mask
    scale = torch.full((40,), 0.5)
    log_prob = kernels.log_likelihood_fwd(x, mean, scale, mask, "gaussian")
    assert log_prob.isnan().tolist() == [[False, True, False]]
    assert log_prob[0, 2] == 0
    grad = torch.ones(1, 3)
    grads = kernels.log_likelihood_bwd(grad, x, mean, scale, mask, "gaussian", True, True)
    assert [part.isnan().nonzero().tolist() for part in grads] == [[[0, 1, 39]], [[39]]]


def test_partial_sums_cover_more_rows_than_there_are_partials(monkeypatch):
    module = kernels.log_likelihood
    monkeypatch.setattr(module, "PARTIALS", 3)
    contract = testing.LogLikelihoodContract()
    for case in contract.cases:
        inputs = contract.inputs("log_likelihood_bwd", case, torch.float32)
        contract.check(TestContract.implementations[0], "log_likelihood_bwd", inputs)


@pytest.mark.parametrize("case", TestContract.cases, ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    contract = testing.LogLikelihoodContract()
    inputs = contract.inputs("log_likelihood_bwd", case, torch.float32)
    watched_memory += [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    for function in contract.functions:
        getattr(kernels, function)(*[inputs[name] for name in testing._arguments(function)])
