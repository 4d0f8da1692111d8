import math

import pytest
import torch

from rvi_fast import kernels, testing
from rvi_fast.kernels._common import row_error
from rvi_fast.testing import RelayDecodeCase

INTERPRETER = testing.Implementation("triton-interpreter", kernels)
CONTRACT = testing.RelayDecodeContract()


class TestContract(testing.RelayDecodeContract):
    implementations = (INTERPRETER,)


@pytest.mark.parametrize("case", CONTRACT.cases, ids=str)
def test_the_posterior_is_that_of_relay_sample_bit_for_bit(case):
    inputs = CONTRACT.inputs(case)
    got = CONTRACT.call(INTERPRETER, inputs)
    drawn = [inputs[name] for name in ("rows", "relays", "index", "seed")]
    layout = [inputs[name] for name in ("groups", "kept", "form")]
    z, kl, bits, mean = kernels.relay_sample_fwd(*drawn, None, *layout, 1, inputs["noise_index"])
    assert torch.equal(bits, inputs["bits"])
    posterior = {name: got[name] for name in ("z", "kl", "mean")}
    testing.assert_bit_equal(posterior, {"z": z[0], "kl": kl, "mean": mean})


@pytest.mark.parametrize("width", [1, 7, 20, 64, 100, 128])
def test_a_layer_of_any_width_is_that_of_torch(width):
    inputs = CONTRACT.inputs(RelayDecodeCase(30, 18, width, (), (128, width)))
    got = CONTRACT.call(INTERPRETER, inputs)
    last = got["z"].double()
    for number, (weight, bias) in enumerate(
        zip(inputs["weights"], inputs["biases"], strict=True), 1
    ):
        exact = torch.nn.functional.linear(last, weight.double(), bias.double()).relu()
        last = got[f"hidden_{number}"].double()
        torch.testing.assert_close(last, exact, rtol=1e-5, atol=1e-6)


def test_rows_outside_the_table_give_zeros_and_raise_the_flag():
    error = row_error(torch.device("cpu"))
    error.zero_()
    inputs = CONTRACT.inputs(RelayDecodeCase(40, 23, 7, (25, 40), (20, 5)))
    expected = CONTRACT.call(INTERPRETER, inputs)
    assert not error.any()
    bad = torch.tensor([0, 8, 22])
    good = torch.ones(23, dtype=torch.bool)
    good[bad] = False
    index = inputs["index"].clone()
    index[bad] = torch.tensor([40, -1, torch.iinfo(torch.int64).min])
    # bits that claim coefficients of rows that do not exist change nothing
    got = CONTRACT.call(INTERPRETER, inputs | {"index": index})
    assert error.tolist() == [1]
    error.zero_()
    for name, value in got.items():
        assert torch.equal(value[good], expected[name][good]), name
        assert not value[bad].any(), name


def test_nan_goes_where_the_formulas_take_it():
    inputs = CONTRACT.inputs(RelayDecodeCase(9, 4, 7, (9,), (20, 5)))
    row = int(inputs["index"][1])
    inputs["rows"][row, 12] = math.nan  # the deviation
    got = CONTRACT.call(INTERPRETER, inputs)
    others = torch.tensor([0, 2, 3])
    assert got["kl"][1].isnan()
    for number in (1, 2):
        layer = got[f"hidden_{number}"]
        assert layer[1].isnan().all()
        assert layer[others].isfinite().all()


@pytest.mark.parametrize("case", [CONTRACT.cases[2], CONTRACT.cases[3]], ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    inputs = CONTRACT.inputs(case)
    inputs["index"][:2] = torch.tensor([-1, case.num_data])
    watched_memory += [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    watched_memory += [*inputs["weights"], *(b for b in inputs["biases"] if b is not None)]
    assert CONTRACT.call(INTERPRETER, inputs)["z"].shape[0] == case.batch


def test_row_numbers_times_the_width_may_exceed_32_bits():
    inputs = CONTRACT.inputs(RelayDecodeCase(3, 2, 2, (3,), (4,)))
    inputs["index"] = torch.tensor([2, 0])
    inputs["noise_index"] = torch.tensor([5, 6])
    expected = CONTRACT.call(INTERPRETER, inputs)
    width = inputs["rows"].shape[1]
    last = 2**31 // width + 5
    # memory that is not touched is not there: the table takes a few pages
    rows, places = torch.empty(last + 1, width), torch.tensor([0, 1, last])
    rows[places] = inputs["rows"]
    got = CONTRACT.call(INTERPRETER, inputs | {"rows": rows, "index": places[inputs["index"]]})
    testing.assert_bit_equal(got, expected)
