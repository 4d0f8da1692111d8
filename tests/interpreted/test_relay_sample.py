import math

import pytest
import torch

from rvi_fast import RowLayout, kernels, reference, testing
from rvi_fast.kernels._common import row_error
from rvi_fast.testing import RelaySampleCase, assert_bit_equal

INTERPRETER = testing.Implementation("triton-interpreter", kernels)
FUNCTIONS = testing.RelaySampleContract.functions


class TestContract(testing.RelaySampleContract):
    implementations = (INTERPRETER,)
    dtypes = (torch.float32,)
    cases = (
        *testing.RelaySampleContract.cases,
        RelaySampleCase(5, 17, 100, (300, 7), 0.4, given_noise=True),
        RelaySampleCase(9, 1, 256, (25, 50), num_samples=3),
        RelaySampleCase(9, 17, 256, (1024,), 0.5),
        # the relays' gradient in three pieces, of rows that stand in the batch many times
        RelaySampleCase(7, 150, 20, (25, 50, 100)),
        RelaySampleCase(7, 100, 33, (100, 3), 0.2, "mixture", ties=True),
        RelaySampleCase(7, 0, 7, (), num_samples=2),
    )


class TestContractInHalfPrecision(testing.RelaySampleContract):
    implementations = (INTERPRETER,)
    dtypes = (torch.float16, torch.bfloat16)
    cases = (
        RelaySampleCase(9, 17, 7, (25, 40), num_samples=3),
        RelaySampleCase(9, 70, 7, (7, 40), 0.5, "mixture", ties=True),
    )


def inputs_of(case, **changes):
    """Inputs of both functions, those of the backward included."""
    contract = testing.RelaySampleContract()
    inputs = contract.inputs("relay_sample_bwd", case, torch.float32) | changes
    names = testing._arguments("relay_sample_fwd")
    inputs["bits"], inputs["mean"] = kernels.relay_sample_fwd(*[inputs[n] for n in names])[2:]
    return inputs


def both(inputs):
    """What the two functions return, by name."""
    contract, results = testing.RelaySampleContract(), {}
    for function in FUNCTIONS:
        results |= contract.call(INTERPRETER, function, inputs)
    return results


@pytest.mark.parametrize("seed", [0, -7, 2**40 + 3, -(2**63)])
@pytest.mark.parametrize("latent_dim", [1, 7, 64])
def test_noise_equals_the_definition(seed, latent_dim):
    layout = RowLayout.resolve(latent_dim, ())
    index, seed = torch.tensor([0, 3, 5, 3], dtype=torch.int32), torch.tensor([seed])
    rows, relays = torch.zeros(6, layout.width), torch.zeros(0, latent_dim)
    z, kl, *_ = kernels.relay_sample_fwd(rows, relays, index, seed, None, (), (), "linear", 3)
    yardstick, exact = (
        reference.normal_noise(seed, index, 3, latent_dim, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    testing.assert_as_accurate("z", z, exact, yardstick)
    assert not kl.any()


@pytest.mark.parametrize("form", ["linear", "cluster", "mixture"])
def test_special_numbers_are_selected_as_defined(form):
    numbers = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40]
    for kept in (1, 4, 12, 13):
        case = RelaySampleCase(200, 70, 5, (13,), kept, form)
        inputs = inputs_of(case)
        choice = torch.randint(len(numbers), (200, 13), generator=torch.Generator().manual_seed(0))
        inputs["rows"][:, :13] = torch.tensor(numbers)[choice]
        for function in FUNCTIONS:
            names = testing._arguments(function)
            expected = getattr(reference, function)(*[inputs[name] for name in names])
            got = getattr(kernels, function)(*[inputs[name] for name in names])
            if function.endswith("fwd"):
                inputs["bits"], inputs["mean"] = expected[2:]
            for left, right in zip(got, expected, strict=True):
                assert torch.equal(left.isnan(), right.isnan())
                torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_nan_of_any_bits_is_a_tie_with_any_other():
    layout = RowLayout.resolve(1, (5,), 2)
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1, 0x3F800000], dtype=torch.int32)
    rows = torch.zeros(1, layout.width)
    rows[:, :5] = patterns.view(torch.float32)
    index, seed = torch.tensor([0]), torch.tensor([0])
    fixed = (rows, torch.ones(5, 1), index, seed, None, layout.groups, layout.kept, "linear", 1)
    assert kernels.relay_sample_fwd(*fixed)[2].tolist() == [[0b00011]]


@pytest.mark.parametrize(
    "case",
    [
        RelaySampleCase(9, 70, 3, (25, 40), given_noise=True),
        RelaySampleCase(9, 17, 100, (300, 7), num_samples=2),
        RelaySampleCase(9, 70, 7, (13, 40), form="mixture"),
        RelaySampleCase(9, 5, 5, (), num_samples=2),
    ],
    ids=str,
)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    contract = testing.RelaySampleContract()
    inputs = contract.inputs("relay_sample_bwd", case, torch.float32)
    inputs["index"][:2] = torch.tensor([-1, case.num_data])
    watched_memory += [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    for function in FUNCTIONS:
        arguments = [inputs[name] for name in testing._arguments(function)]
        watched_memory += getattr(kernels, function)(*arguments)


@pytest.mark.parametrize("form", ["linear", "mixture"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_outside_the_table_give_zeros_and_raise_the_flag(form, dtype):
    error = row_error(torch.device("cpu"))
    error.zero_()
    case = RelaySampleCase(9, 23, 7, (25, 40), form=form, num_samples=2)
    inputs = inputs_of(case)
    expected = both(inputs)
    assert not error.any()
    bad = torch.tensor([0, 8, 22])
    good = torch.ones(23, dtype=torch.bool)
    good[bad] = False
    index = inputs["index"].to(dtype)
    index[bad] = torch.tensor([9, -1, torch.iinfo(dtype).min], dtype=dtype)
    # bits that claim coefficients of rows that do not exist change nothing
    got = both(inputs | {"index": index})
    assert error.tolist() == [1]
    error.zero_()
    for name in ("z", "kl", "bits", "grad_rows"):
        rows = 1 if name == "z" else 0
        where = good.nonzero().flatten()
        assert torch.equal(
            got[name].index_select(rows, where), expected[name].index_select(rows, where)
        )
        assert not got[name].index_select(rows, bad).any()
    some = {n: inputs[n][good] for n in ("index", "grad_kl", "bits", "mean")}
    some["grad_z"] = inputs["grad_z"][:, good]
    without = both(inputs | some)["grad_relays"]
    torch.testing.assert_close(got["grad_relays"], without, rtol=1e-5, atol=1e-5)


def test_row_numbers_times_the_width_may_exceed_32_bits():
    layout = RowLayout.resolve(2, (3,))
    last = 2**31 // layout.width + 5
    # memory that is not touched is not there: the table takes a few pages
    rows = torch.empty(last + 1, layout.width)
    inputs = inputs_of(RelaySampleCase(3, 4, 2, (3,), given_noise=True))
    inputs["index"] = torch.tensor([1, 2, 0, 1])
    expected = both(inputs)
    places = torch.tensor([0, 1, last])
    rows[places] = inputs["rows"]
    got = both(inputs | {"rows": rows, "index": places[inputs["index"]]})
    assert_bit_equal(got, expected)


def test_what_is_not_covered_is_left_to_the_reference():
    for case, dtype in (
        (RelaySampleCase(2, 2, 3, (4,)), torch.float64),
        (RelaySampleCase(2, 2, 257, (4,)), torch.float32),
        (RelaySampleCase(2, 2, 3, (1025,)), torch.float32),
    ):
        contract = testing.RelaySampleContract()
        for function in FUNCTIONS:
            inputs = contract.inputs(function, case, dtype)
            arguments = [inputs[name] for name in testing._arguments(function)]
            assert getattr(kernels, function)(*arguments) is NotImplemented


@pytest.mark.parametrize("log_std", [-1e30, -200.0, 45.0, math.inf, math.nan])
def test_extreme_log_std_is_clamped_and_nan_stays(log_std):
    inputs = inputs_of(RelaySampleCase(9, 5, 3, (4,)))
    layout = RowLayout.resolve(3, (4,))
    inputs["rows"][:, layout.log_std_slice] = log_std
    for function in FUNCTIONS:
        arguments = [inputs[name] for name in testing._arguments(function)]
        expected = getattr(reference, function)(*arguments)
        for left, right in zip(getattr(kernels, function)(*arguments), expected, strict=True):
            torch.testing.assert_close(left, right, rtol=2e-6, atol=1e-6, equal_nan=True)
