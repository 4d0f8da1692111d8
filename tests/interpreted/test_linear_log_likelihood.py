"""The Triton kernels in the interpreter: `TRITON_INTERPRET=1 pytest tests/interpreted`."""

import pytest
import torch

import rvi_fast.kernels
from rvi_fast import reference, testing

# the file of the package's kernels, not the function of the same name
kernel = __import__("importlib").import_module("rvi_fast.kernels.linear_log_likelihood")
pieces = __import__("importlib").import_module("rvi_fast.kernels.pieces")
IMPLEMENTATION = testing.Implementation("triton-interpreter", rvi_fast.kernels)


class TestContract(testing.LinearLogLikelihoodContract):
    implementations = (IMPLEMENTATION,)
    dtypes = (torch.float32,)
    # one program of the interpreter takes milliseconds: the contract's shapes, fewer rows
    cases = tuple(
        case if case.batch < 100 else type(case)(**{**vars(case), "batch": 100})
        for case in testing.LinearLogLikelihoodContract.cases
    )


@pytest.mark.parametrize("case", TestContract.cases[1:6], ids=str)
def test_sums_of_one_program_equal_those_of_pieces(case, monkeypatch):
    contract = TestContract()
    monkeypatch.setattr(pieces, "PROGRAMS", 1)
    for function in contract.functions:
        contract.check(IMPLEMENTATION, function, contract.inputs(function, case, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_in_half_precision_are_computed_in_float32(dtype):
    contract = TestContract()
    for function in contract.functions:
        contract.check(
            IMPLEMENTATION, function, contract.inputs(function, contract.cases[1], dtype)
        )


def test_packed_mask_equals_the_plain_one():
    contract = TestContract()
    for function in contract.functions:
        inputs = contract.inputs(function, contract.cases[3], torch.float32)
        packed = inputs | {"mask": reference.pack_bits(inputs["mask"])}
        testing.assert_bit_equal(
            contract.call(IMPLEMENTATION, function, packed),
            contract.call(IMPLEMENTATION, function, inputs),
        )


def test_wide_and_double_layers_are_left_to_the_reference():
    x, scale = torch.zeros(2, 3), torch.tensor(1.0)
    for width, dtype in ((257, torch.float32), (4, torch.float64)):
        layer = torch.zeros(1, 2, width, dtype=dtype), torch.zeros(3, width, dtype=dtype)
        for function, call in (
            (kernel.linear_log_likelihood_fwd, (*layer, None, x, scale, None, "gaussian")),
            (
                kernel.linear_log_likelihood_bwd,
                (torch.ones(1, 2), *layer, None, x, scale, None, "gaussian", True, True, True),
            ),
        ):
            assert function(*call) is NotImplemented


@pytest.mark.parametrize("walks", [1, 7, 25, 128, 300])
@pytest.mark.parametrize("steps", [1, 8, 25, 128, 1000])
def test_programs_fit_a_large_gpu_at_once(steps, walks):
    share = pieces.share(steps, walks)
    programs = -(-steps // share) * walks
    assert programs <= max(pieces.PROGRAMS, walks)
