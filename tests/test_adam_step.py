import pytest
import torch

from rvi_fast import testing
from rvi_fast.ops import ops
from rvi_fast.testing import assert_close


class TestContract(testing.AdamStepContract):
    implementations = testing.installed()


def race(dtype, steps, num_parts, betas=(0.9, 0.999), weight_decay=0.0, size=40):
    """Parameters and moments after steps of a changing size: ours and torch's, in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    peer = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([peer], betas=betas, weight_decay=weight_decay)
    own = [start.clone(), torch.zeros_like(start), torch.zeros_like(start)]
    step, lr = torch.zeros(1, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    for number in range(steps):
        grads = torch.randn(num_parts, size, generator=generator, dtype=torch.float64).to(dtype)
        lr.fill_(0.01 / (1 + number / 20))
        optimizer.param_groups[0]["lr"] = float(lr)
        peer.grad = grads.sum(0)
        optimizer.step()
        ops.adam_step(*own, grads, step, lr, *betas, 1e-8, weight_decay)
    assert step.tolist() == [steps]
    state = optimizer.state[peer]
    return own, [peer.detach(), state["exp_avg"], state["exp_avg_sq"]]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.99, 0.9999)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("num_parts", [1, 5])
def test_steps_equal_adam_of_torch(betas, weight_decay, num_parts):
    assert_close(*race(torch.float64, 200, num_parts, betas, weight_decay))


def test_without_decay_it_is_adam_and_not_only_adamw():
    own, _ = race(torch.float64, 50, 1)
    generator = torch.Generator().manual_seed(0)
    peer = torch.nn.Parameter(torch.randn(40, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.Adam([peer])
    for number in range(50):
        peer.grad = torch.randn(1, 40, generator=generator, dtype=torch.float64)[0]
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + number / 20)
        optimizer.step()
    assert_close(own[:1], [peer])


def test_float32_is_as_accurate_as_torch():
    own, peer = race(torch.float32, 300, 3)
    # the same gradients, rounded to float32, in float64
    exact = [table.double() for table in race(torch.float64, 300, 3)[1]]
    for ours, theirs, truth in zip(own, peer, exact, strict=True):
        assert testing.largest_error(ours, truth) <= 1.5 * testing.largest_error(theirs, truth)


def test_moments_never_become_denormal():
    contract, tiny = testing.AdamStepContract(), torch.finfo(torch.float32).tiny
    inputs = contract.inputs("adam_step", contract.cases[1], torch.float32)
    inputs |= {"exp_avg": torch.full((63,), tiny), "exp_avg_sq": torch.full((63,), tiny)}
    inputs["grads"] = torch.zeros(7, 63)
    for implementation in testing.installed():
        written = contract.call(implementation, "adam_step", inputs)
        assert not written["exp_avg"].any()
        assert not written["exp_avg_sq"].any()


def test_nan_in_a_part_reaches_its_parameter_alone():
    contract = testing.AdamStepContract()
    inputs = contract.inputs("adam_step", contract.cases[1], torch.float32)
    inputs["grads"][5, 3] = torch.nan
    for implementation in testing.installed():
        params = contract.call(implementation, "adam_step", inputs)["params"]
        assert params.isnan().nonzero().tolist() == [[3]]


def test_registration_passes_opcheck():
    contract = testing.AdamStepContract()
    for case in contract.cases[1:3]:
        torch.library.opcheck(ops.adam_step, contract.arguments("adam_step", case))
