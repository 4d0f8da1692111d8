import pytest
import torch

from rvi_fast import kernels, testing
from rvi_fast.reference.fused_step import SHARED_BLOCK
from rvi_fast.testing import FinishStepCase

INTERPRETER = testing.Implementation("triton-interpreter", kernels)
CONTRACT = testing.FinishStepContract()
SHARED = ("params", "exp_avg", "exp_avg_sq")


class TestContract(testing.FinishStepContract):
    implementations = (INTERPRETER,)


@pytest.mark.parametrize("room", [1, 5, 40])
def test_one_piece_gives_the_bits_of_adam_step(room):
    inputs = CONTRACT.inputs(FinishStepCase(70, room, 4))
    inputs["parts"].fill_(1)
    inputs["grads"][0].normal_(generator=torch.Generator().manual_seed(0))
    got = CONTRACT.call(INTERPRETER, inputs)
    own = inputs["group"].repeat_interleave(SHARED_BLOCK)
    for number, lr in enumerate(inputs["lr"]):
        values = [inputs[name][own == number] for name in SHARED]
        grads, step = inputs["grads"][:1, own == number], inputs["step"].clone()
        betas = [inputs[name] for name in ("beta1", "beta2", "eps")]
        kernels.adam_step(*values, grads, step, lr, *betas, 0.0)
        assert torch.equal(got["step"], step)
        for name, value in zip(SHARED, values, strict=True):
            assert torch.equal(got[name][own == number], value), name


def test_clock_and_history_have_the_bits_of_row_adam_step():
    inputs = CONTRACT.inputs(FinishStepCase(1, steps=30, weight_decay=0.1))
    got = CONTRACT.call(INTERPRETER, inputs)
    clock, history = inputs["clock"], inputs["history"]
    tables = [torch.zeros(1, 1) for _ in range(3)]
    row_step, none = torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int64)
    betas = (inputs["row_beta1"], inputs["row_beta2"], 1e-8, inputs["row_weight_decay"])
    kernels.row_adam_step(
        *tables,
        row_step,
        none,
        torch.zeros(0, 1),
        clock,
        history,
        inputs["row_lr"],
        *betas,
        "dense",
    )
    testing.assert_bit_equal(
        {name: got[name] for name in ("clock", "history")}, {"clock": clock, "history": history}
    )


def test_a_block_of_parts_is_the_gradient_of_its_first_number():
    inputs = CONTRACT.inputs(FinishStepCase(3, 4, 1, steps=0))
    inputs["grads"].copy_(torch.randint(9, (4, 96), generator=torch.Generator().manual_seed(0)))
    inputs["parts"].copy_(torch.tensor([2, -3, 4]))
    got, grads = CONTRACT.call(INTERPRETER, inputs), inputs["grads"]
    # after a first step without a moment the moment is a tenth of the gradient
    first = got["exp_avg"] * 10.0
    expected = torch.cat((grads[:2, :32].sum(0), torch.zeros(32), grads[:, 64:].sum(0)))
    expected[32] = grads[:3, 32:64].sum()
    torch.testing.assert_close(first, expected)
    assert torch.equal(got["params"][33:64], inputs["params"][33:64])


def test_programs_that_count_themselves_leave_no_trace_in_the_step():
    inputs = CONTRACT.inputs(FinishStepCase(100, 40))
    for step in (0, 2**31 - 1):
        inputs["step"] = torch.tensor([step])
        assert CONTRACT.call(INTERPRETER, inputs)["step"].tolist() == [step + 1]


@pytest.mark.parametrize("case", TestContract.cases, ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    inputs = CONTRACT.inputs(case)
    watched_memory += [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    kernels.finish_step(*inputs.values())
