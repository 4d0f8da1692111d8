import importlib
import math
import subprocess
import sys

import pytest
import torch

from rvi_fast import kernels, reference, testing
from rvi_fast.kernels._common import row_error
from rvi_fast.reference import fused_step
from rvi_fast.testing import LikelihoodRowsCase

# the file of the package's kernels, not the function of the same name
pieces = importlib.import_module("rvi_fast.kernels.pieces")
INTERPRETER = testing.Implementation("triton-interpreter", kernels)
FUNCTIONS = testing.LikelihoodRowsContract.functions
CONTRACT = testing.LikelihoodRowsContract()


class TestContract(testing.LikelihoodRowsContract):
    implementations = (INTERPRETER,)


def both(inputs):
    """What the two functions give, by name."""
    results = {}
    for function in FUNCTIONS:
        names = CONTRACT.inputs(function, CONTRACT.cases[0])
        results |= CONTRACT.call(INTERPRETER, function, {name: inputs[name] for name in names})
    return results


def inputs_of(case, **changes):
    return CONTRACT.inputs("likelihood_features", case) | changes


@pytest.mark.parametrize("case", TestContract.cases[1:6], ids=str)
def test_sums_of_one_program_equal_those_of_pieces(case, monkeypatch):
    monkeypatch.setattr(pieces, "PROGRAMS", 1)
    for function in FUNCTIONS:
        inputs = CONTRACT.inputs(function, case)
        if function == "likelihood_features":
            inputs["grads"] = inputs["grads"][: 1 + (case.scale == "scalar")]
        CONTRACT.check(INTERPRETER, function, inputs)


@pytest.mark.parametrize("case", [
    LikelihoodRowsCase(90, 70, 100, 33, "scalar", True, torch.uint8, packed=True, room=5),
    LikelihoodRowsCase(90, 70, 130, 64, "feature", True, torch.uint8, packed=True, room=5),
    LikelihoodRowsCase(90, 70, 130, 16, "scalar", room=5),
], ids=str)  # fmt: skip
def test_tiles_of_a_device_with_wide_products_give_the_same(case, monkeypatch):
    weights = importlib.import_module("rvi_fast.kernels.weights")
    monkeypatch.setattr(weights, "multiplies_in_groups", lambda: True)
    tile = weights.tile_of(weights.FEATURES_TILES, case.hidden_dim, "gaussian")
    assert tile["BLOCK_D"] == 64
    for function in FUNCTIONS:
        CONTRACT.check(INTERPRETER, function, CONTRACT.inputs(function, case))


GUARDED = """
import ctypes, mmap, sys, torch
from rvi_fast.kernels import pieces
import rvi_fast.kernels as kernels
weights = sys.modules["rvi_fast.kernels.weights"]
weights.multiplies_in_groups = lambda: WIDE
pieces.PROGRAMS = 2
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
# rows of five words that end where memory ends
mask = torch.frombuffer(memory, dtype=torch.int32, count=page // 4)[-40:].view(8, 5).fill_(-1)
x = torch.randint(0, 256, (8, 130), dtype=torch.uint8)
hidden, weight, bias = torch.randn(8, 16), torch.randn(130, 16), torch.zeros(130)
index, log_scale = torch.arange(8), torch.zeros(())
inputs = (hidden, weight, bias, x, index, log_scale, mask, "gaussian", -0.1)
kernels.likelihood_rows(*inputs)
room = kernels.pieces_of_features(hidden, weight, log_scale, mask)
kernels.likelihood_features(*inputs, torch.zeros(room, 2272), (0, 2080, 2240))
print("inside")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect is missing")
@pytest.mark.parametrize("wide", [False, True])
def test_bits_are_read_within_their_rows_where_a_walk_goes_beyond_the_last_feature(wide):
    """Five tiles of 32 in two pieces are six, and three of 64 are four: the last lies beyond."""
    program = GUARDED.replace("WIDE", str(wide))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "inside\n"), run.stderr


def test_rows_of_a_table_give_what_the_op_gives_for_their_batch():
    """Bit for bit, where the scale is 1: the walks are the same."""
    case = LikelihoodRowsCase(90, 70, 130, 33, "feature", True, torch.uint8, room=5)
    inputs = inputs_of(case, log_scale=torch.zeros(130))
    index, grads = inputs["index"], inputs["grads"]
    log_prob, grad_hidden = kernels.likelihood_rows(*[*inputs.values()][:9])
    counts = kernels.likelihood_features(*inputs.values())
    expected = kernels.linear_log_likelihood_bwd(
        torch.full((1, 70), inputs["grad"]), inputs["hidden"][None], inputs["weight"],
        inputs["bias"], inputs["x"][index], torch.ones(130), inputs["mask"][index], "gaussian",
        True, True, True,
    )  # fmt: skip
    got = [pieces.add_up(log_prob), pieces.add_up(grad_hidden)]
    for place, count, part in zip(inputs["places"], counts, expected[2:], strict=True):
        own = grads[:count, place : place + part.numel()].contiguous()
        got.append(pieces.add_up(own).view(part.shape))
    for left, right in zip(got, (expected[0][0], expected[1][0], *expected[2:]), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_packed_mask_equals_the_plain_one_of_the_table():
    inputs = inputs_of(TestContract.cases[2])
    packed = inputs | {"mask": reference.pack_bits(inputs["mask"])}
    testing.assert_bit_equal(both(packed), both(inputs))


@pytest.mark.parametrize("scale", ["scalar", "feature"])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_outside_the_table_are_left_out_and_raise_the_flag(scale, masked):
    error = row_error(torch.device("cpu"))
    error.zero_()
    inputs = inputs_of(LikelihoodRowsCase(60, 40, 63, 7, scale, masked))
    bad = torch.tensor([0, 8, 39])
    good = torch.ones(40, dtype=torch.bool)
    good[bad] = False
    index = inputs["index"].clone()
    index[bad] = torch.tensor([60, -1, -(2**63)])
    hidden = inputs["hidden"].clone()
    expected = both(inputs)
    assert not error.any()
    hidden[bad] = math.nan  # what was computed of rows that do not exist
    got = both(inputs | {"index": index, "hidden": hidden})
    assert error.tolist() == [1]
    error.zero_()
    for name in ("log_prob", "grad_hidden"):
        assert torch.equal(got[name][good], expected[name][good])
        assert not got[name][bad].any()
    some = {name: inputs[name][good] for name in ("hidden", "index")}
    for name, value in both(inputs | some).items():
        if name in ("grad_weight", "grad_bias", "grad_log_scale"):
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_row_numbers_times_the_features_may_exceed_32_bits(packed):
    case = LikelihoodRowsCase(3, 3, 40, 7, "feature", True, torch.uint8, packed)
    inputs = inputs_of(case, index=torch.tensor([2, 0, 1]))
    expected = both(inputs)
    last = 2**31 // 40 + 5
    # memory that is not touched is not there: the tables take a few pages
    x = torch.empty(last + 1, 40, dtype=torch.uint8)
    mask = torch.empty(last + 1, *inputs["mask"].shape[1:], dtype=inputs["mask"].dtype)
    places = torch.tensor([0, 1, last])
    x[places], mask[places] = inputs["x"], inputs["mask"]
    got = both(inputs | {"x": x, "mask": mask, "index": places[inputs["index"]]})
    testing.assert_bit_equal(got, expected)


@pytest.mark.parametrize("case", TestContract.cases, ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    inputs = inputs_of(case)
    inputs["index"][: case.batch // 3] = case.num_data
    watched_memory += [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    kernels.likelihood_rows(*[*inputs.values()][:9])
    kernels.likelihood_features(*inputs.values())


def test_a_nan_that_the_mask_says_is_observed_gives_nan():
    inputs = inputs_of(LikelihoodRowsCase(9, 5, 40, 7, "feature", True))
    index, mask = inputs["index"], inputs["mask"]
    mask[index[1], 3], mask[index[2], 5] = True, False
    inputs["x"][index[1], 3] = inputs["x"][index[2], 5] = math.nan
    log_prob, _ = kernels.likelihood_rows(*[*inputs.values()][:9])
    assert log_prob.isnan().any(0).nonzero().tolist() == [[1]]
    counts = kernels.likelihood_features(*inputs.values())
    for count, place, width in zip(counts, inputs["places"], (7, 1, 1), strict=True):
        written = inputs["grads"][:count, place : place + 40 * width]
        assert written.isnan().any(0).nonzero().flatten().tolist() == [*range(3 * width, 4 * width)]


def test_pieces_fit_the_room_there_is_and_fill_what_was_asked_for():
    for case in (
        LikelihoodRowsCase(90, 70, 40, 7, "feature"),
        LikelihoodRowsCase(90, 70, 70, 7, "scalar"),
        LikelihoodRowsCase(9, 7, 1100, 3, "scalar"),
    ):
        inputs = inputs_of(case)
        sizes = [inputs[name] for name in ("hidden", "weight", "log_scale", "mask")]
        wanted = kernels.pieces_of_features(*sizes)
        for room in {1 + (case.num_features > 1024), 2, wanted, wanted + 3}:
            grads = inputs["grads"].new_full((room, inputs["grads"].shape[1]), math.nan)
            counts = kernels.likelihood_features(*(inputs | {"grads": grads}).values())
            assert max(map(abs, counts)) <= min(room, wanted)
            if room >= wanted:
                assert max(map(abs, counts)) == wanted


def test_room_too_small_for_the_numbers_of_all_programs_is_refused():
    inputs = inputs_of(LikelihoodRowsCase(9, 5, 1100, 3, room=1))
    with pytest.raises(ValueError, match=r"grads: expected at least 2 pieces .* got 1"):
        kernels.likelihood_features(*inputs.values())


def test_block_of_the_shared_buffer_is_that_of_the_reference():
    assert pieces.SHARED_BLOCK == fused_step.SHARED_BLOCK
