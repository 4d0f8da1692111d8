import math

import numpy as np
import pytest
import torch

from rvi_fast import kernels, reference, testing
from rvi_fast.kernels._common import row_error
from rvi_fast.testing import CatchUpAndSelectCase

INTERPRETER = testing.Implementation("triton-interpreter", kernels)
CONTRACT = testing.CatchUpAndSelectContract()
TABLES = ("rows", "exp_avg", "exp_avg_sq")


class TestContract(testing.CatchUpAndSelectContract):
    implementations = (INTERPRETER,)


def two_kernels(inputs):
    """What the kernels of the two ops leave."""
    result = testing.RowAdamContract().call(INTERPRETER, "row_adam_catch_up", inputs)
    relays = torch.zeros(sum(inputs["groups"]), inputs["latent_dim"])
    drawn = (inputs["index"], torch.tensor([0]), None, inputs["groups"], inputs["kept"])
    bits = kernels.relay_sample_fwd(result["rows"], relays, *drawn, "linear", 1)[2]
    return result | {"bits": bits}


@pytest.mark.parametrize("case", CONTRACT.cases, ids=str)
def test_what_is_left_equals_what_two_kernels_leave(case):
    inputs = CONTRACT.inputs(case)
    testing.assert_bit_equal(CONTRACT.call(INTERPRETER, inputs), two_kernels(inputs))


@pytest.mark.parametrize("kept", [1, 4, 12, 13])
@pytest.mark.parametrize("steps", [0, 12])
def test_special_numbers_are_selected_as_defined(kept, steps):
    numbers = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40]
    inputs = CONTRACT.inputs(
        CatchUpAndSelectCase(12, 12, 5, (13, 13), kept, steps=steps, ties=True)
    )
    choice = torch.randint(len(numbers), (12, 29), generator=torch.Generator().manual_seed(0))
    inputs["rows"][:, :29] = torch.tensor(numbers)[choice]
    # NaN of any bits are tied
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -4194303], dtype=torch.int32)
    inputs["rows"][::3, :4] = patterns.view(torch.float32)
    testing.assert_bit_equal(CONTRACT.call(INTERPRETER, inputs), two_kernels(inputs))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_rows_outside_the_table_change_nothing_and_raise_the_flag(bfloat16):
    error = row_error(torch.device("cpu"))
    case = CatchUpAndSelectCase(9, 4, 6, (25, 40), bfloat16=bfloat16)
    inputs = CONTRACT.inputs(case) | {"index": torch.tensor([2, 0])}
    error.zero_()
    expected = CONTRACT.call(INTERPRETER, inputs)
    assert not error.any()
    # the tables lie within others, whose first and last rows are the neighbours of what is bad
    bad = inputs | {"index": torch.tensor([2, 9, 0, -1, torch.iinfo(torch.int64).min])}
    width = inputs["rows"].shape[1]
    wide = {n: torch.full((11, width), math.nan, dtype=inputs[n].dtype) for n in TABLES}
    wide["row_step"] = torch.full((11,), 7, dtype=torch.int32)
    for name, table in wide.items():
        table[1:-1] = bad[name]
        bad[name] = table[1:-1]
    names = testing.catch_up_and_select.ARGUMENTS
    bits = kernels.catch_up_and_select(*[bad[name] for name in names])
    assert error.tolist() == [1]
    error.zero_()
    assert torch.equal(bits[[0, 2]], expected.pop("bits"))
    assert not bits[[1, 3, 4]].any()
    testing.assert_bit_equal({name: bad[name] for name in wide}, expected)
    for name, table in wide.items():
        guard = table[[0, -1]]
        assert (guard == 7).all() if name == "row_step" else guard.isnan().all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_of_rows_that_are_up_to_date_nothing_is_written(bfloat16, monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    inputs = CONTRACT.inputs(CatchUpAndSelectCase(30, 9, 6, (25, 40), bfloat16=bfloat16))
    now, fresh = inputs["clock"][0], torch.tensor([3, 17, 4])
    inputs["index"] = torch.tensor([3, 17, 8, 4])
    inputs["row_step"][fresh] = now.int()
    inputs["row_step"][8] = now.int() - 2
    store, written = InterpreterBuilder.create_masked_store, []

    def watched(self, pointers, value, mask, *arguments):
        marked = np.broadcast_to(mask.data.astype(bool), pointers.data.shape)
        written.extend(pointers.data[marked].ravel())
        return store(self, pointers, value, mask, *arguments)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", watched)
    names = testing.catch_up_and_select.ARGUMENTS
    bits = kernels.catch_up_and_select(*[inputs[name] for name in names])
    addresses = np.array(written)
    for name in (*TABLES, "row_step"):
        table = inputs[name]
        first, size = table.data_ptr(), table[0].numel() * table.element_size()
        rows = (addresses[(addresses >= first) & (addresses < first + 30 * size)] - first) // size
        assert set(rows.tolist()) == {8}, name
    layout = CONTRACT.layout(CatchUpAndSelectCase(30, 9, 6, (25, 40)))
    marks = reference.selected(inputs["rows"][inputs["index"]], layout)
    assert torch.equal(bits, torch.cat([*map(reference.pack_bits, marks)], 1))


@pytest.mark.parametrize("case", [CONTRACT.cases[1], CONTRACT.cases[2], CONTRACT.cases[5]], ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    inputs = CONTRACT.inputs(case)
    inputs["index"][:2] = torch.tensor([-1, case.num_data])
    watched_memory += [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    names = testing.catch_up_and_select.ARGUMENTS
    assert kernels.catch_up_and_select(*[inputs[name] for name in names]).shape[0] == case.batch


def test_row_numbers_times_the_width_may_exceed_32_bits():
    inputs = CONTRACT.inputs(CatchUpAndSelectCase(3, 2, 2, (3,)))
    width = inputs["rows"].shape[1]
    last = 2**31 // width + 5
    inputs["index"] = torch.tensor([2, 0])
    expected = CONTRACT.call(INTERPRETER, inputs)
    places, far = torch.tensor([0, 1, last]), dict(inputs)
    for name in (*TABLES, "row_step"):
        # memory that is not touched is not there: each table takes a few pages
        far[name] = inputs[name].new_empty((last + 1, *inputs[name].shape[1:]))
        far[name][places] = inputs[name]
    far["index"] = places[inputs["index"]]
    names = testing.catch_up_and_select.ARGUMENTS
    got = {"bits": kernels.catch_up_and_select(*[far[name] for name in names])}
    got |= {name: far[name][places] for name in (*TABLES, "row_step")}
    testing.assert_bit_equal(got, expected)
