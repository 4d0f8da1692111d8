"""Every op refuses what its pointers do not cover, in the same words from every implementation."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rvi_fast import _op_checks, ops, reference, testing
from rvi_fast.testing.contract import _arguments, _written

REFUSALS = (TypeError, ValueError, IndexError)
CONTRACTS = {
    testing.RelaySampleContract(): (
        testing.RelaySampleCase(
            6, 3, 5, (7, 2), num_samples=2, given_noise=True, keyed=torch.int64
        ),
        testing.RelaySampleCase(6, 3, 4, (3, 33), form="mixture"),
        testing.RelaySampleCase(6, 4, 3, ()),
    ),
    testing.LogLikelihoodContract(): (
        testing.LogLikelihoodCase(3, 5, 2, "feature", masked=True),
        testing.LogLikelihoodCase(3, 5, 1, "entry", True, torch.uint8, packed=True),
        testing.LogLikelihoodCase(3, 5, 2, "none", law="bernoulli"),
    ),
    testing.LinearLogLikelihoodContract(): (
        testing.LinearLogLikelihoodCase(3, 5, 2, "feature", masked=True, hidden_dim=4),
        testing.LinearLogLikelihoodCase(3, 4, 1, "entry", hidden_dim=2, bias=False),
        testing.LinearLogLikelihoodCase(3, 4, 1, "none", hidden_dim=2, law="bernoulli"),
    ),
    testing.RowAdamContract(): (
        testing.RowAdamCase(6, 3, 5, 4),
        testing.RowAdamCase(6, 3, 5, 4, mode="lazy"),
        testing.RowAdamCase(6, 3, 5, 4, mode="row", bfloat16=True),
    ),
    testing.AdamStepContract(): (testing.AdamStepCase(5, 2), testing.AdamStepCase(4, 1)),
}
CASES = [
    (contract, function, case)
    for contract, cases in CONTRACTS.items()
    for function in contract.functions
    for case in cases
]
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
)
# what lies before and behind a table that an op writes
BAND = 64


def shorter(tensor, dim):
    return tensor.narrow(dim, 0, max(tensor.shape[dim] - 1, 0))


def longer(tensor, dim):
    return torch.cat((tensor, tensor.narrow(dim, 0, min(tensor.shape[dim], 1))), dim)


def filled(tensor, number):
    # integers of indices and counts; those of pixels are data
    counts = tensor.dtype in (torch.int32, torch.int64)
    return torch.full_like(tensor, number) if counts else tensor


CHANGES = {
    "narrower": lambda t, n: shorter(t, n % t.dim()) if t.dim() else t,
    "wider": lambda t, n: longer(t, n % t.dim()) if t.dim() else t,
    "empty": lambda t, n: t.narrow(n % t.dim(), 0, 0) if t.dim() else t,
    "flat": lambda t, n: t.reshape(-1),
    "deeper": lambda t, n: t[None],
    "flatter": lambda t, n: t[0] if t.dim() and len(t) else t,
    "transposed": lambda t, n: t.mT if t.dim() > 1 else t,
    "odd strides": lambda t, n: testing.strided(t),
    "expanded": lambda t, n: testing.expanded(t) if t.dim() and len(t) else t,
    "dtype": lambda t, n: t.to(DTYPES[n % len(DTYPES)]),
    "device": lambda t, n: t.to("meta"),
    "value": lambda t, n: filled(t, (-1, 2**31 - 1, 5, 6, 0, -(2**31))[n % 6]),
    "nothing": lambda t, n: None,
}
ATTRIBUTES = {
    "groups": [[], [7], [2, 7], [7, 2, 1], [0, 2], [-3, 2], [3, 33], [40, 2]],
    "kept": [[], [1], [3, 1], [-1, 2], [0, 1], [8, 1], [4, 3], [1, 1, 1]],
    "form": ["linear", "cluster", "mixture", "sparsemax", ""],
    "num_samples": [0, -1, 1, 2, 3],
    "semantics": ["dense", "lazy", "row", "rows", ""],
    "beta1": [0.0, -0.1, 1.0, 1.5, float("nan")],
    "beta2": [0.9, -0.1, 1.0, float("inf"), float("nan")],
    "need_rows": [False],
    "need_relays": [False],
    "need_output": [False],
    "law": [*reference.laws.LAWS, "gauss", ""],
    "need_scale": [False],
    "need_hidden": [False],
    "need_linear": [False],
}


@st.composite
def calls(draw):
    """A function of an op, a case of it, and what is changed in its arguments."""
    contract, function, case = draw(st.sampled_from(CASES))
    inputs = contract.inputs(function, case, torch.float32)
    names = [
        name
        for name in _arguments(function)
        if isinstance(inputs[name], torch.Tensor) or name in ATTRIBUTES
    ]
    changes = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        if isinstance(inputs[name], torch.Tensor):
            change = draw(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 9)))
        else:
            change = draw(st.sampled_from(ATTRIBUTES[name]))
        changes.append((name, change))
    return contract, function, case, changes


def made(contract, function, case, changes):
    """The arguments by name, changed, and the memory around those that are written."""
    inputs = contract.inputs(function, case, torch.float32)
    for name, change in changes:
        value = inputs[name]
        if isinstance(value, torch.Tensor):
            kind, number = change
            change = CHANGES[kind](value, number)
        inputs[name] = change
    memories = []
    for name in _written(function):
        table = inputs[name]
        if isinstance(table, torch.Tensor) and table.is_contiguous() and not table.is_meta:
            memory = table.new_ones(2 * BAND + table.numel())
            inputs[name] = memory[BAND : BAND + table.numel()].view(table.shape).copy_(table)
            memories.append(memory)
    return {name: inputs[name] for name in _arguments(function)}, memories


def outcome(call, function, arguments, memories):
    """What a call returned and wrote, or how it was refused: nothing is written then.

    Whatever happens, the memory around the tables stays as it is.
    """
    tables = [arguments[name] for name in _written(function)]
    before = [None if table is None else table.clone() for table in tables]
    try:
        result = call(*arguments.values())
    except REFUSALS as error:
        result = error
        for table, old in zip(tables, before, strict=True):
            if table is not None and not table.is_meta:
                torch.testing.assert_close(table, old, rtol=0, atol=0, equal_nan=True)
    for memory in memories:
        assert bool((memory[:BAND] == 1).all() and (memory[-BAND:] == 1).all())
    if isinstance(result, Exception) or result is NotImplemented:
        return result
    result = (result,) if isinstance(result, torch.Tensor) else result or ()
    return [*result, *tables]


def in_words(error):
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("wing", ["op", "launcher"])
def test_wrong_arguments_are_refused_or_give_what_the_reference_gives(wing):
    serving = ops.implementation("cpu")

    @settings(max_examples=800, deadline=None, derandomize=True, database=None)
    @given(calls())
    def check(drawn):
        _, function, case, changes = drawn
        call = getattr(ops.ops if wing == "op" else serving, function)
        expected = outcome(getattr(reference, function), function, *made(*drawn))
        got = outcome(call, function, *made(*drawn))
        if got is NotImplemented:  # left to the reference
            return
        if isinstance(got, Exception):
            # the dispatcher knows of types as well, and a bit of no relay is for the reference no bit
            text = str(got)
            if "bits: expected none beyond" not in text and "rvi_fast::" not in text:
                assert in_words(got) == in_words(expected)
            return
        assert not isinstance(expected, Exception), in_words(expected)
        # a history that does not belong to the steps beside it holds no numbers to agree on
        foreign = ("semantics", "dense") in changes and case.mode != "dense"
        foreign |= any(name in ("clock", "row_step") for name, _ in changes)
        for result, other in zip(got, expected, strict=True):
            assert (result.shape, result.dtype) == (other.shape, other.dtype)
            assert result.is_meta or result.is_contiguous() or "odd strides" in str(changes)
            if not foreign:
                torch.testing.assert_close(result, other, rtol=0.02, atol=0.02, equal_nan=True)

    check()


def test_every_function_of_every_wing_is_behind_the_checks():
    kernels = pytest.importorskip("rvi_fast.kernels", reason="Triton is not installed")
    for name in ops.SCHEMAS:
        assert name in _op_checks.CHECKS
        for wing in (reference, ops.implementation("cpu"), kernels):
            assert getattr(wing, name).__wrapped__.__name__ == name


VALID = [
    (c, f, case) for c, f, case in CASES if "lazy" not in str(case) and "mixture" not in str(case)
]


@pytest.mark.parametrize(
    ("contract", "function", "case"), VALID, ids=[f"{f}-{case}" for _, f, case in VALID]
)
def test_what_is_no_tensor_is_named(contract, function, case):
    for name, value in contract.inputs(function, case, torch.float32).items():
        if name in _arguments(function) and isinstance(value, torch.Tensor):
            arguments, _ = made(contract, function, case, [])
            arguments[name] = [1.0]
            for wing in (reference, ops.implementation("cpu")):
                with pytest.raises(TypeError, match=f"{name}: expected a torch.Tensor, got list"):
                    getattr(wing, function)(*arguments.values())


@pytest.mark.parametrize("semantics", ["rows", "", "Dense"])
def test_unknown_semantics_are_refused_in_every_wing(semantics):
    contract = testing.RowAdamContract()
    case = testing.RowAdamCase(6, 3, 5, 4)
    kernels = pytest.importorskip("rvi_fast.kernels", reason="Triton is not installed")
    for wing in (reference, ops.implementation("cpu"), kernels, ops.ops):
        arguments, _ = made(contract, "row_adam_step", case, [("semantics", semantics)])
        with pytest.raises(ValueError, match=f"semantics: .* dense, lazy, row, got '{semantics}'"):
            wing.row_adam_step(*arguments.values())


@pytest.mark.parametrize("given_noise", [False, True])
@pytest.mark.parametrize("function", testing.RelaySampleContract.functions)
def test_row_numbers_that_key_the_noise_are_as_many_as_the_rows(function, given_noise):
    contract = testing.RelaySampleContract()
    case = testing.RelaySampleCase(6, 3, 5, (7, 2), given_noise=given_noise, keyed=torch.int64)
    for wing in (reference, ops.implementation("cpu"), ops.ops):
        arguments, _ = made(contract, function, case, [])
        arguments["noise_index"] = torch.zeros(2, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"noise_index: expected shape \[3\], got \[2\]"):
            getattr(wing, function)(*arguments.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("function", testing.RowAdamContract.functions)
def test_row_numbers_that_key_the_moments_are_as_many_as_the_rows(function, bfloat16):
    contract = testing.RowAdamContract()
    case = testing.RowAdamCase(6, 3, 5, 4, bfloat16=bfloat16, keyed=True)
    for wing in (reference, ops.implementation("cpu"), ops.ops):
        arguments, _ = made(contract, function, case, [])
        size = len(arguments["index"])
        arguments["key_index"] = torch.zeros(2, dtype=torch.int64)
        with pytest.raises(ValueError, match=rf"key_index: expected shape \[{size}\], got \[2\]"):
            getattr(wing, function)(*arguments.values())


def test_layouts_in_lists_are_refused_as_layouts_are():
    contract, case = testing.RelaySampleContract(), testing.RelaySampleCase(6, 3, 5, (7, 2))
    for changes, message in (
        (
            [("form", "sparsemax")],
            "form: expected one of linear, cluster, mixture, got 'sparsemax'",
        ),
        ([("kept", [-1, 2])], "kept: expected integers >= 1, got -1"),
        ([("kept", [8, 1])], "kept: expected counts from 1 to 7"),
        ([("kept", [1])], r"kept: expected one entry per group \(2\), got 1"),
        ([("groups", [0, 2])], "groups: expected integers >= 1, got 0"),
    ):
        for wing in (reference, ops.implementation("cpu"), ops.ops):
            arguments, _ = made(contract, "relay_sample_fwd", case, changes)
            with pytest.raises(ValueError, match=message):
                wing.relay_sample_fwd(*arguments.values())


@pytest.mark.parametrize("function", ["row_adam_catch_up", "row_adam_step"])
def test_steps_outside_the_history_are_refused_before_anything_is_written(function):
    contract, case = testing.RowAdamContract(), testing.RowAdamCase(6, 3, 5, 4)
    for name, value, message in (
        ("row_step", torch.full((6,), 2**31 - 5, dtype=torch.int32), "row_step: expected 0 to 4"),
        ("row_step", torch.full((6,), -5, dtype=torch.int32), "row_step: .*, got -5 in row"),
        ("clock", torch.tensor([2**33, 0]), "clock: expected 0 <= clock"),
        ("clock", torch.tensor([1, 2]), r"clock: expected .*, got \[1, 2\]"),
    ):
        for wing in (reference, ops.implementation("cpu"), ops.ops):
            arguments, memories = made(contract, function, case, [])
            arguments[name] = value
            refused = outcome(getattr(wing, function), function, arguments, memories)
            assert isinstance(refused, ValueError)
            assert re.search(message, str(refused))
