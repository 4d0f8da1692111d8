import math

import pytest
import torch

from rvi_fast import kernels, reference, testing
from rvi_fast.kernels import row_adam
from rvi_fast.kernels._common import row_error

INTERPRETER = testing.Implementation("triton-interpreter", kernels)


class TestContract(testing.RowAdamContract):
    implementations = (INTERPRETER,)
    dtypes = (torch.float32,)


def arguments(function, bfloat16=False, **changes):
    contract, case = testing.RowAdamContract(), testing.RowAdamCase(9, 4, 5, bfloat16=bfloat16)
    return contract, contract.inputs(function, case, torch.float32) | changes


@pytest.mark.parametrize("width", [1, 7, 139, 1030])
def test_bfloat16_moments_have_the_random_bits_of_the_reference(width):
    testing.RowAdamContract().check_rounding(INTERPRETER, width)


def test_the_two_moments_are_rounded_by_different_bits():
    testing.RowAdamContract().check_bits_of_the_moments(INTERPRETER)


def test_rows_outside_the_table_are_neither_read_nor_written():
    error = row_error(torch.device("cpu"))
    for function, dtype in (
        ("row_adam_catch_up", torch.int32),
        ("row_adam_step", torch.int64),
    ):
        contract, inputs = arguments(function)
        good = inputs | {"index": torch.tensor([2, 0])}
        if "grad" in good:
            good["grad"] = inputs["grad"][[0, 2]]
        bad = inputs | {"index": torch.tensor([2, 9, 0, -1]).to(dtype)}
        # the tables lie within others, whose first and last rows are the neighbours of what is bad
        wide = {name: torch.full((11, 5), math.nan) for name in ("rows", "exp_avg", "exp_avg_sq")}
        wide["row_step"] = torch.full((11,), 7, dtype=torch.int32)
        for name, table in wide.items():
            table[1:-1] = bad[name]
            bad[name] = table[1:-1]
        error.zero_()
        expected = contract.call(INTERPRETER, function, good)
        assert not error.any()
        answer = getattr(kernels, function)(*[bad[name] for name in testing._arguments(function)])
        assert answer is None
        assert error.tolist() == [1]
        testing.assert_bit_equal({name: bad[name] for name in wide}, {n: expected[n] for n in wide})
        for name, table in wide.items():
            guard = table[[0, -1]]
            assert (guard == 7).all() if name == "row_step" else guard.isnan().all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_row_that_stands_twice_is_caught_up_once(bfloat16):
    function = "row_adam_catch_up"
    contract, inputs = arguments(function, bfloat16, index=torch.tensor([3, 1, 3, 3, 1]))
    once = inputs | {"index": torch.tensor([1, 3])}
    got, expected = (contract.call(INTERPRETER, function, i) for i in (inputs, once))
    testing.assert_bit_equal(got, expected)


def test_gradients_of_a_row_are_added_up_in_the_order_of_the_index():
    contract, inputs = arguments("row_adam_step", repeats=True)
    big, small = torch.full((5,), 2.0**24), torch.ones(5)
    inputs |= {"index": torch.tensor([3, 8, 3, 3]), "grad": torch.stack([big, small, small, small])}
    added = torch.stack([(big + small) + small, small])
    once = inputs | {"index": torch.tensor([3, 8]), "grad": added, "repeats": False}
    assert not torch.equal(added[0], big + (small + small))
    got, expected = (contract.call(INTERPRETER, "row_adam_step", i) for i in (inputs, once))
    testing.assert_bit_equal(got, expected)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999), (0.99, 0.999), (0.5, 0.5)])
def test_window_is_that_of_the_reference(betas):
    assert row_adam._window(*betas) == reference.row_adam_window(*betas)
    assert row_adam.WINDOW_TOLERANCE == reference.WINDOW_TOLERANCE


def test_closed_form_holds_over_many_steps():
    """Three hundred steps with decay, where every row rests for a while, against float64."""
    generator = torch.Generator().manual_seed(0)
    states = []
    for dtype in (torch.float64, torch.float32, torch.float32):
        tables = [torch.zeros(6, 3, dtype=dtype) for _ in range(3)]
        clock, history = (
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(310, reference.HISTORY_COLUMNS).double(),
        )
        states.append([*tables, torch.zeros(6, dtype=torch.int32), clock, history])
        states[-1][0].fill_(0.5)
    lr = torch.tensor(0.02, dtype=torch.float64)
    for _ in range(300):
        index = torch.randperm(6, generator=generator)[:2]
        grad = torch.randn(2, 3, generator=generator)
        for namespace, (*tables, clock, history) in zip(
            (reference, reference, kernels), states, strict=True
        ):
            constants = (0.9, 0.999, 1e-8)
            values = grad.to(tables[0].dtype)
            namespace.row_adam_catch_up(*tables, index, clock, history, *constants)
            namespace.row_adam_step(
                *tables, index, values, clock, history, lr, *constants, 0.1, "dense"
            )
    exact, yardstick, got = states
    for name, *values in zip(
        ("rows", "exp_avg", "exp_avg_sq"), got, exact, yardstick, strict=False
    ):
        testing.assert_as_accurate(name, *values)
    torch.testing.assert_close(got[-1], exact[-1], rtol=1e-12, atol=1e-15)
