import importlib
import math

import pytest
import torch

from rvi_fast import RowLayout, kernels, reference, testing
from rvi_fast.kernels._common import row_error
from rvi_fast.reference import fused_step
from rvi_fast.testing import BackwardToRowsCase, assert_bit_equal

INTERPRETER = testing.Implementation("triton-interpreter", kernels)
CONTRACT = testing.BackwardToRowsContract()
MODULE = importlib.import_module("rvi_fast.kernels.backward_to_rows")


class TestContract(testing.BackwardToRowsContract):
    implementations = (INTERPRETER,)
    cases = (
        *testing.BackwardToRowsContract.cases,
        BackwardToRowsCase(40, 17, 64, (25, 50, 100), (64, 64), pieces=25, bfloat16=True),
        BackwardToRowsCase(40, 17, 100, (300, 7), (128, 20, 1)),
        BackwardToRowsCase(40, 16, 128, (1024,), (100,)),
    )


def written(inputs):
    """What a call writes, in the pieces in which it does."""
    own = inputs | {name: inputs[name].clone() for name in testing.backward_to_rows.WRITTEN}
    counts = kernels.backward_to_rows(*own.values())
    return counts, {name: own[name] for name in testing.backward_to_rows.WRITTEN}


@pytest.mark.parametrize("batch", [48, 65, 100])
def test_a_program_walks_over_several_blocks(batch, monkeypatch):
    monkeypatch.setattr(MODULE, "MAX_PIECES", 3)
    case = BackwardToRowsCase(120, batch, 6, (25, 40), (7, 20), bfloat16=batch == 100)
    assert kernels.pieces_for(batch) == {48: 3, 65: 3, 100: 3}[batch]
    CONTRACT.check(INTERPRETER, CONTRACT.inputs(case))


def test_large_batches_have_a_bounded_number_of_pieces():
    sizes = {1: 1, 16: 1, 17: 2, 256: 16, 4096: 256, 4097: 129, 8192: 256, 65_536: 256}
    assert {batch: kernels.pieces_for(batch) for batch in sizes} == sizes
    for batch in range(1, 10_000):
        blocks, steps = -(-batch // 16), MODULE._steps_for(batch)
        assert (kernels.pieces_for(batch) - 1) * steps < blocks <= 256 * steps


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_results_do_not_depend_on_how_many_programs_share_a_block(shares, monkeypatch):
    inputs = CONTRACT.inputs(BackwardToRowsCase(60, 37, 7, (25, 70), (20, 40, 7), bfloat16=True))
    expected = written(inputs)
    monkeypatch.setattr(MODULE, "SHARES", shares)
    counts, got = written(inputs)
    assert counts == expected[0] == [3] * 7
    assert_bit_equal(got, expected[1])


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("groups", [(7, 30), ()])
def test_without_gradient_the_step_is_that_of_row_adam_to_the_bit(bfloat16, groups):
    case = BackwardToRowsCase(60, 37, 7, groups, (5,), bfloat16=bfloat16, weight_decay=0.1)
    inputs = CONTRACT.inputs(case)
    inputs["grad_hidden"].zero_()
    inputs["kl_weight"].zero_()
    _, got = written(inputs)
    tables = {name: inputs[name].clone() for name in ("rows", "exp_avg", "exp_avg_sq", "row_step")}
    kernels.row_adam_step(
        *tables.values(),
        inputs["index"],
        torch.zeros(case.batch, inputs["rows"].shape[1]),
        inputs["clock"].clone(),
        torch.zeros(20, reference.HISTORY_COLUMNS, dtype=torch.float64),
        *(inputs[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        "dense",
    )
    assert_bit_equal({name: got[name] for name in tables}, tables)
    assert not torch.equal(got["rows"], inputs["rows"])


def test_rows_outside_the_table_are_left_out_and_raise_the_flag():
    error = row_error(torch.device("cpu"))
    error.zero_()
    case = BackwardToRowsCase(60, 37, 7, (25, 7), (5, 8))
    inputs = CONTRACT.inputs(case)
    bad, good = torch.tensor([0, 9, 36]), torch.ones(37, dtype=torch.bool)
    good[bad] = False
    some = inputs | {
        name: inputs[name][good] for name in ("index", "bits", "z", "mean")
    } | {"grad_hidden": inputs["grad_hidden"][:, good]}  # fmt: skip
    some["hidden"] = [layer[good] for layer in inputs["hidden"]]
    expected = CONTRACT.call(
        testing.Implementation("reference", fused_step), some | {"full_size": 38}
    )
    assert not error.any()
    # what stands at their places may be anything
    for name in ("z", "mean"):
        inputs[name][bad] = math.nan
    inputs["grad_hidden"][:, bad] = math.nan
    inputs["bits"][bad] = -1
    inputs["index"][bad] = torch.tensor([60, -1, torch.iinfo(torch.int64).min])
    got = CONTRACT.call(INTERPRETER, inputs)
    assert error.tolist() == [1]
    error.zero_()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
    assert torch.equal(got["row_step"], expected["row_step"])


@pytest.mark.parametrize(
    "case",
    [
        BackwardToRowsCase(60, 37, 7, (25, 70), (20, 3)),
        BackwardToRowsCase(60, 17, 5, (3, 13), (), pieces=9, bfloat16=True),
        BackwardToRowsCase(60, 17, 5, (), (7,), pieces=1, frozen=(1,)),
    ],
    ids=str,
)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    inputs = CONTRACT.inputs(case)
    inputs["index"][:2] = torch.tensor([-1, case.num_data])
    for value in inputs.values():
        tensors = value if isinstance(value, list) else [value]
        watched_memory += [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    watched_memory += [inputs[name].view(torch.int16) for name in ("exp_avg", "exp_avg_sq")]
    kernels.backward_to_rows(*inputs.values())


@pytest.mark.parametrize("log_std", [-200.0, -30.1, 30.1, 45.0])
def test_beyond_its_clamp_log_std_has_no_gradient(log_std):
    case = BackwardToRowsCase(20, 17, 6, (4,), (5,))
    inputs = CONTRACT.inputs(case)
    inputs["rows"][inputs["index"][3], RowLayout.resolve(6, (4,)).log_std_slice] = log_std
    inputs["exp_avg"].zero_()
    got = CONTRACT.call(INTERPRETER, inputs)
    moments = got["exp_avg"][inputs["index"]][:, RowLayout.resolve(6, (4,)).log_std_slice]
    assert not moments[3].any()
    assert moments[4].all()
    CONTRACT.check(INTERPRETER, inputs)


def test_too_few_pieces_are_refused():
    inputs = CONTRACT.inputs(BackwardToRowsCase(60, 37, 7, (25,), (5,)))
    inputs["grads"] = inputs["grads"][:2]
    with pytest.raises(ValueError, match="grads: expected 3 pieces or more, got 2"):
        kernels.backward_to_rows(*inputs.values())
