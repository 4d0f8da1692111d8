"""The C++ kernels against the reference, on every path that this machine has."""

from __future__ import annotations

import pytest
import torch
from common import pairs, run_python

from rvi_fast import functional, ops, reference, testing
from rvi_fast.layout import RowLayout
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors.relay import RelayPosterior

cpp = pytest.importorskip("rvi_fast.cpp", reason="the C++ part is not built")

PATHS = cpp._C.cpu_paths()
FORMS = ("linear", "cluster", "mixture")
# allowed error against float64, in multiples of the reference's own error in the same dtype, and
# an absolute part in units in the last place of what is compared; in float64 the reference is its own
# yardstick and only that part counts, for sums of a thousand terms
ERROR_RATIO, ERROR_ULP, ERROR_ULP_FLOAT64 = 4.0, 16.0, 2000.0


@pytest.fixture(autouse=True, params=PATHS)
def path(request):
    before = cpp.cpu_path()
    cpp._C.set_cpu_path(request.param)
    yield request.param
    cpp._C.set_cpu_path(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poison():
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN: what is not written shows
    yield
    torch.use_deterministic_algorithms(False)


def doubled(values):
    return [
        v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values
    ]


def assert_as_good_as_reference(function, arguments, eps):
    """No further from float64 than a few times the reference in the same dtype."""
    results = getattr(cpp, function)(*arguments)
    expected = getattr(reference, function)(*arguments)
    exact = getattr(reference, function)(*doubled(arguments))
    if isinstance(results, torch.Tensor):
        results, expected, exact = (results,), (expected,), (exact,)
    for result, reference_result, truth in zip(results, expected, exact, strict=True):
        assert result.dtype == reference_result.dtype
        assert result.shape == reference_result.shape
        if not result.is_floating_point():
            assert torch.equal(result, reference_result)
            continue
        if not result.numel():
            continue
        finite, result_dtype = truth.isfinite(), result.dtype
        assert torch.equal(result.isfinite(), reference_result.isfinite())
        result, reference_result, truth = (
            part[finite].double() for part in (result, reference_result, truth)
        )
        if not truth.numel():
            continue
        size = truth.abs().max().item() + 1e-30
        error = (result - truth).abs().max().item()
        yardstick = (reference_result - truth).abs().max().item()
        units = ERROR_ULP_FLOAT64 if result_dtype == torch.float64 else ERROR_ULP
        assert error <= ERROR_RATIO * yardstick + units * eps * size


def make(layout, num_data, batch, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(num_data, layout.width, dtype=dtype)
    for columns in (*layout.group_slices, layout.deviation_slice, layout.log_std_slice):
        rows[:, columns] = torch.randn(rows[:, columns].shape, generator=generator, dtype=dtype)
    relays = torch.randn(layout.num_relays, layout.latent_dim, generator=generator, dtype=dtype)
    index = torch.randint(0, num_data, (batch,), generator=generator)
    return rows, relays, index, torch.tensor([-(2**62) + 12345])


def both_directions(layout, rows, relays, index, seed, noise=None, samples=1, eps=None):
    eps = eps or torch.finfo(rows.dtype).eps
    constants = (list(layout.groups), list(layout.kept), layout.form)
    forward = (rows, relays, index, seed, noise, *constants, samples)
    assert_as_good_as_reference("relay_sample_fwd", forward, eps)
    z, kl, bits, mean = cpp.relay_sample_fwd(*forward)
    generator = torch.Generator().manual_seed(1)
    grad_z = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    grad_kl = torch.randn(kl.shape, generator=generator, dtype=kl.dtype)
    backward = (grad_z, grad_kl, rows, relays, index, seed, noise, bits, mean, *constants)
    for needs in ((True, True), (True, False), (False, True)):
        assert_as_good_as_reference("relay_sample_bwd", (*backward, *needs), eps)
    return z, kl, bits


# relay_sample


# a form in a dtype is one function of C++: each meets every width and every list of groups
@pytest.mark.parametrize(
    ("instance", "latent_dim", "groups"),
    pairs(
        [(form, dtype) for form in FORMS for dtype in (torch.float32, torch.float64)],
        [1, 7, 63, 64, 65],
        [(), (1,), (7,), (33,), (25, 50, 100), (1000,), (1, 32, 65)],
    ),
    ids=str,
)
def test_relay_sample_equals_the_reference(instance, latent_dim, groups):
    form, dtype = instance
    for top, samples, batch in ((1.0, 1, 37), (0.5, 3, 16), (1, 1, 1), (0.8, 2, 5)):
        layout = RowLayout.resolve(latent_dim, groups, top, form)
        tables = make(layout, 40, batch, dtype)
        both_directions(layout, *tables, samples=samples)


def test_every_count_is_kept():
    for size in (7, 33):
        for kept in range(1, size + 1):
            layout = RowLayout.resolve(5, (size,), kept)
            both_directions(layout, *make(layout, 20, 20, torch.float32))


@pytest.mark.parametrize("batch", [31, 32, 33, 63, 64, 65, 97])
def test_blocks_of_any_length_give_the_relays_all_their_gradient(batch):
    layout = RowLayout.resolve(3, (5,), 0.5)
    both_directions(layout, *make(layout, 40, batch, torch.float64))


def test_int32_index_and_given_noise():
    layout = RowLayout.resolve(7, (5, 9))
    rows, relays, index, seed = make(layout, 9, 12, torch.float32)
    noise = torch.randn(2, 12, 7)
    both_directions(layout, rows, relays, index.int(), seed, noise, samples=2)


def test_non_contiguous_inputs():
    layout = RowLayout.resolve(7, (5, 9))
    rows, relays, index, seed = make(layout, 9, 24, torch.float32)
    wide = torch.empty(9, 2 * layout.width).fill_(torch.nan)
    wide[:, ::2] = rows
    strided = wide[:, ::2], relays.mT.contiguous().mT, index[::2], seed
    noise = torch.randn(1, 7, 12).mT
    both_directions(layout, *strided, noise)


def test_an_empty_batch():
    layout = RowLayout.resolve(7, (5, 9))
    rows, relays, index, seed = make(layout, 9, 0, torch.float32)
    z, kl, bits = both_directions(layout, rows, relays, index, seed)
    assert z.shape == (1, 0, 7)
    assert kl.shape == (0,)
    assert bits.shape == (0, 2)


def kept_bits(coefficients, kept):
    layout = RowLayout.resolve(1, (coefficients.shape[1],), kept)
    rows = torch.zeros(len(coefficients), layout.width, dtype=coefficients.dtype)
    rows[:, layout.group_slices[0]] = coefficients
    arguments = (
        rows,
        torch.ones(layout.num_relays, 1, dtype=rows.dtype),
        torch.arange(len(rows)),
        torch.zeros(1, dtype=torch.int64),
        None,
        list(layout.groups),
        list(layout.kept),
        "linear",
        1,
    )
    _, _, bits, _ = cpp.relay_sample_fwd(*arguments)
    assert torch.equal(bits, reference.relay_sample_fwd(*arguments)[2])
    return reference.unpack_bits(bits, coefficients.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_lowest_index(dtype):
    coefficients = torch.tensor([[0.0, 1.0, -1.0, 2.0, 1.0, -0.0, 1.0]], dtype=dtype)
    assert kept_bits(coefficients, 3).nonzero()[:, 1].tolist() == [1, 2, 3]
    for size in (31, 100, 175, 300):
        few = torch.randint(-2, 3, (64, size), dtype=dtype)
        for kept in {1, size // 3, size // 2, size - 1}:
            kept_bits(few, kept)
            kept_bits(torch.zeros(2, size, dtype=dtype), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_numbers_are_ordered(dtype):
    tiny, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    denormal = tiny * torch.finfo(dtype).eps
    special = torch.tensor(
        [
            0.0,
            -0.0,
            denormal,
            -2 * denormal,
            tiny,
            -tiny,
            1.0,
            largest,
            -largest,
            torch.inf,
            -torch.inf,
            torch.nan,
            -torch.nan,
        ],
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(0)
    for size in (5, 16, 40, 130):
        picks = torch.randint(0, len(special), (100, size), generator=generator)
        for kept in (1, 2, size // 2, size - 1):
            kept_bits(special[picks], kept)


def test_a_nan_of_any_bits_is_a_tie_with_any_other():
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1, 0x3F800000], dtype=torch.int32)
    coefficients = patterns.view(torch.float32)[None]
    assert kept_bits(coefficients, 2).tolist() == [[True, True, False, False, False]]


def test_an_extreme_log_std_is_clamped():
    layout = RowLayout.resolve(4, (3,))
    rows, relays, index, seed = make(layout, 4, 4, torch.float32)
    rows[:, layout.log_std_slice] = torch.tensor([-100.0, 100.0, -30.0, 30.0])
    z, kl, _ = both_directions(layout, rows, relays, index, seed)
    assert z.isfinite().all()
    assert kl.isfinite().all()


@pytest.mark.parametrize("latent_dim", [3, 16, 21])
def test_an_infinite_coefficient_gives_an_infinite_divergence(latent_dim):
    layout = RowLayout.resolve(latent_dim, (2,), 1)
    rows, relays, _, seed = make(layout, 1, 1, torch.float32)
    rows[0, 0] = torch.inf
    fixed = (rows, relays, torch.tensor([0]), seed, None, [2], [1], "linear", 1)
    for namespace in (cpp, reference):
        _, kl, _, mean = namespace.relay_sample_fwd(*fixed)
        assert kl.tolist() == [torch.inf]
        assert mean.isinf().all()


def test_an_index_out_of_range_is_refused():
    layout = RowLayout.resolve(4, (3,))
    rows, relays, _, _ = make(layout, 5, 1, torch.float32)
    for index, wrong in (([0, 5], 5), ([-1, 9], -1), ([2**40], 2**40)):
        message = rf"^index: expected row numbers from 0 to 4, got {wrong}$"
        with pytest.raises(IndexError, match=message):
            functional.relay_sample(rows, relays, torch.tensor(index), layout=layout)


def test_half_precision_tables_are_left_to_the_reference():
    layout = RowLayout.resolve(4, (3,))
    rows, relays, index, _ = make(layout, 5, 6, torch.bfloat16)
    z, _ = functional.relay_sample(rows, relays, index, layout=layout)
    assert z.dtype == torch.bfloat16


# Noise


def test_philox_matches_the_published_vectors():
    # Random123 kat_vectors: philox4x32 10 rounds
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        words = [torch.tensor(part).to(torch.int32) for part in (counter, key)]
        result = torch.zeros(4, dtype=torch.int32)
        counter, key = (part.data_ptr() for part in words)
        cpp._C.philox(counter=counter, key=key, words=result.data_ptr(), count=1)
        assert [int(word) & ones for word in result] == list(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_equals_the_reference(dtype):
    layout = RowLayout.resolve(130, ())
    index = torch.tensor([0, 3, 2**16])
    rows = torch.zeros(2**16 + 1, layout.width, dtype=dtype)
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        seed = torch.tensor([seed])
        z, *_ = cpp.relay_sample_fwd(
            rows, rows.new_empty(0, 130), index, seed, None, [], [], "linear", 3
        )
        truth = reference.normal_noise(seed, index, 3, 130, torch.float64)
        expected = reference.normal_noise(seed, index, 3, 130, dtype)
        yardstick = (expected.double() - truth).abs().max()
        assert (z.double() - truth).abs().max() <= 2 * yardstick + 1e-14


def test_noise_of_row_numbers_beyond_32_bits_equals_the_reference():
    layout, seed = RowLayout.resolve(9, ()), torch.tensor([5])
    keys = torch.tensor([3, 2**32 + 3, 2**40, 2**62 + 1])
    rows, index = torch.zeros(1, layout.width, dtype=torch.float64), torch.zeros_like(keys)
    # log std is 0: z is the noise
    fixed = (rows, rows.new_empty(0, 9), index, seed, None, [], [], "linear", 2)
    z, *_ = cpp.relay_sample_fwd(*fixed, keys)
    torch.testing.assert_close(z, reference.normal_noise(seed, keys, 2, 9, torch.float64))


def test_noise_is_standard_normal():
    layout = RowLayout.resolve(64, ())
    rows, index = torch.zeros(1000, layout.width), torch.arange(1000)
    seed = torch.tensor([7])
    z, *_ = cpp.relay_sample_fwd(
        rows, rows.new_empty(0, 64), index, seed, None, [], [], "linear", 10
    )
    assert abs(z.mean().item()) < 5e-3
    assert abs(z.std().item() - 1) < 5e-3
    assert abs(z.double().pow(4).mean().item() - 3) < 0.05
    assert z.abs().max() < 5.77


# gaussian_log_likelihood


def scales(batch, num_features, dtype):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.rand(shape, generator=generator, dtype=dtype) + 0.3
        for shape in ((), (1,), (num_features,), (batch, num_features))
    ]


FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# the dtype of the data is that of a load, that of the output the one of the sums: any two meet, and each
# meets every number of features
@pytest.mark.parametrize(
    ("num_features", "dtype", "x_dtype"),
    pairs([1, 7, 63, 64, 65, 784], FLOATS, [*FLOATS, torch.uint8]),
    ids=str,
)
def test_likelihood_equals_the_reference(num_features, dtype, x_dtype):
    generator = torch.Generator().manual_seed(0)
    for samples, batch in ((1, 33), (3, 2), (2, 0)):
        x = torch.randn(batch, num_features, generator=generator)
        if x_dtype == torch.uint8:
            x = x.mul(60).clamp(0, 255).to(torch.uint8)
        else:
            x[torch.rand(x.shape, generator=generator) < 0.2] = torch.nan
            x[:1] = torch.nan
            x = x.to(x_dtype)
        mean = torch.randn(samples, batch, num_features, generator=generator).to(dtype)
        grad = torch.randn(samples, batch, generator=generator)
        mask = torch.rand(x.shape, generator=generator) < 0.5
        # the gradient of a single scale is a sum of entries that cancel
        eps = 4 * torch.finfo(dtype).eps
        for scale in scales(batch, num_features, dtype):
            marked = mask if x_dtype == torch.uint8 else mask & ~x.isnan()
            for marks in (None, marked, reference.pack_bits(marked)):
                inputs = (x, mean, scale, marks, "gaussian")
                assert_as_good_as_reference("log_likelihood_fwd", inputs, eps)
                for needs in ((True, True), (True, False), (False, True)):
                    assert_as_good_as_reference("log_likelihood_bwd", (grad, *inputs, *needs), eps)


def test_likelihood_of_many_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 9, generator=generator)
    mean, grad = x[None] + 0.1, torch.randn(1, 5000, generator=generator)
    for scale in scales(5000, 9, torch.float32):
        inputs = (grad, x, mean, scale, None, "gaussian", True, True)
        assert_as_good_as_reference("log_likelihood_bwd", inputs, 1e-6)


def test_no_row_is_lost_where_a_piece_is_no_whole_number_of_partial_sums():
    x, grad = torch.zeros(33_000, 2, dtype=torch.float64), torch.ones(1, 33_000)
    # every row counts u^2 - 1 = 3
    arguments = (grad, x, x[None] + 2.0, torch.ones(2, dtype=torch.float64), None, "gaussian")
    _, grad_scale = cpp.log_likelihood_bwd(*arguments, True, True)
    assert grad_scale.tolist() == [99_000.0] * 2


def test_likelihood_takes_non_contiguous_inputs():
    x, mean = torch.randn(7, 5).mT, torch.randn(2, 7, 5).mT
    mask, scale = (torch.rand(7, 5) < 0.5).mT, torch.tensor([0.5]).expand(7)
    for marks in (None, mask, testing.strided(reference.pack_bits(mask))):
        assert_as_good_as_reference("log_likelihood_fwd", (x, mean, scale, marks, "gaussian"), 1e-7)
        grad = torch.randn(5, 2).mT
        assert_as_good_as_reference(
            "log_likelihood_bwd", (grad, x, mean, scale, marks, "gaussian", True, True), 1e-7
        )


def test_a_nan_that_the_mask_calls_observed_stays_a_nan():
    x = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    result = cpp.log_likelihood_fwd(x, torch.zeros(1, 2, 2), torch.tensor(1.0), mask, "gaussian")
    assert result.isnan().tolist() == [[True, False]]


def test_a_half_precision_value_of_every_kind():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype).reshape(256, 256)
        x = torch.where(x.isfinite() & (x.abs() < 1e4), x, torch.zeros((), dtype=dtype))
        arguments = (
            torch.ones(1, 256),
            x,
            torch.zeros(1, 256, 256),
            torch.tensor(1.0),
            None,
            "gaussian",
        )
        result, _ = cpp.log_likelihood_bwd(*arguments, True, False)
        assert torch.equal(result[0], x.float())


# row_adam


def adam_state(num_data, width, dtype, seed=0, moments=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_data, width, generator=generator, dtype=dtype)
    return {
        "rows": rows,
        "exp_avg": torch.zeros_like(rows, dtype=moments),
        "exp_avg_sq": torch.zeros_like(rows, dtype=moments),
        "row_step": torch.zeros(num_data, dtype=torch.int32),
        "clock": torch.zeros(2, dtype=torch.int64),
        "history": torch.zeros((400, reference.HISTORY_COLUMNS), dtype=torch.float64),
    }


# a mode in a dtype is one function of C++: each meets every width and all constants
@pytest.mark.parametrize(
    ("instance", "constants", "width"),
    pairs(
        [(m, dtype) for m in ("dense", "lazy", "row") for dtype in (torch.float32, torch.float64)],
        [((0.9, 0.999), 0.0), ((0.0, 0.9), 0.0), ((0.5, 0.99), 0.1)],
        [1, 17, 308],
    ),
    ids=str,
)
def test_row_adam_equals_the_reference(instance, constants, width):
    (mode, dtype), (betas, weight_decay) = instance, constants
    weight_decay = weight_decay if mode == "dense" else 0.0
    ours, theirs = adam_state(30, width, dtype), adam_state(30, width, dtype)
    generator = torch.Generator().manual_seed(5)
    for step in range(60):
        index = torch.randperm(30, generator=generator)[: 1 + step % 9]
        seen = index.repeat(2)
        grad = torch.randn(len(index), width, generator=generator, dtype=dtype)
        if step % 7 == 0:
            grad *= 1e-25  # squares are denormal
        lr = torch.tensor(0.01 / (1 + step), dtype=torch.float64)
        for wing, state in ((cpp, ours), (reference, theirs)):
            if mode == "dense":
                tables = [state[name] for name in ("rows", "exp_avg", "exp_avg_sq", "row_step")]
                wing.row_adam_catch_up(
                    *tables, seen, state["clock"], state["history"], *betas, 1e-8
                )
            wing.row_adam_step(
                state["rows"],
                state["exp_avg"],
                state["exp_avg_sq"],
                state["row_step"],
                index.int() if step % 2 else index,
                grad,
                state["clock"],
                state["history"],
                lr,
                *betas,
                1e-8,
                weight_decay,
                mode,
            )
    for name, value in theirs.items():
        if value.is_floating_point():
            tolerance = 40 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(ours[name], value)
    smallest = torch.finfo(dtype).smallest_normal
    for name in ("exp_avg", "exp_avg_sq"):
        assert not ((ours[name] != 0) & (ours[name].abs() < smallest)).any()


@pytest.mark.parametrize("width", [1, 7, 63, 139])
def test_bfloat16_moments_have_the_random_bits_of_the_reference(width):
    testing.RowAdamContract().check_rounding(testing.Implementation("cpp", cpp), width)


@pytest.mark.parametrize("function", testing.RowAdamContract.functions)
def test_bfloat16_moments_pass_the_contract(function):
    contract = testing.RowAdamContract()
    for case in contract.cases:
        if case.bfloat16:
            inputs = contract.inputs(function, case, torch.float32)
            contract.check(testing.Implementation("cpp", cpp), function, inputs)


def test_row_adam_leaves_other_rows_alone():
    state = adam_state(50, 20, torch.float32)
    before = state["rows"].clone()
    index = torch.tensor([3, 49])
    tables = [state[name] for name in ("rows", "exp_avg", "exp_avg_sq", "row_step")]
    cpp.row_adam_step(
        *tables,
        index,
        torch.ones(2, 20),
        state["clock"],
        state["history"],
        torch.tensor(0.1, dtype=torch.float64),
        0.9,
        0.999,
        1e-8,
        0.0,
        "dense",
    )
    changed = (state["rows"] != before).any(1).nonzero()[:, 0]
    assert changed.tolist() == [3, 49]


def test_row_adam_refuses_an_index_out_of_range_before_it_writes():
    state = adam_state(5, 4, torch.float32)
    before = state["rows"].clone()
    tables = [state[name] for name in ("rows", "exp_avg", "exp_avg_sq", "row_step")]
    with pytest.raises(IndexError, match="got 5"):
        ops.ops.row_adam_step(
            *tables,
            torch.tensor([0, 5]),
            torch.ones(2, 4),
            state["clock"],
            state["history"],
            torch.tensor(0.1, dtype=torch.float64),
            0.9,
            0.999,
            1e-8,
            0.0,
            "dense",
        )
    assert torch.equal(state["rows"], before)
    assert state["clock"].tolist() == [0, 0]


# Threads and processes


def everything(num_threads, threads):
    """Results of every op on a batch large enough for several threads."""
    threads(num_threads)
    results = []
    batch = 3 * 2048 + 100
    for form in FORMS:
        layout = RowLayout.resolve(9, (5, 9), form=form)
        rows, relays, index, seed = make(layout, 700, batch, torch.float32)
        constants = (list(layout.groups), list(layout.kept), form)
        forward = cpp.relay_sample_fwd(rows, relays, index, seed, None, *constants, 1)
        results += forward
        z, kl, *saved = forward
        backward = (z.sin(), kl.sin(), rows, relays, index, seed, None, *saved, *constants)
        results += cpp.relay_sample_bwd(*backward, True, True)
    x = torch.randn(batch, 11, generator=torch.Generator().manual_seed(0))
    for scale in scales(batch, 11, torch.float32):
        results.append(cpp.log_likelihood_fwd(x, x.cos()[None], scale, None, "gaussian"))
        grad = results[-1].sin()
        inputs = (grad, x, x.cos()[None], scale, None, "gaussian")
        results += cpp.log_likelihood_bwd(*inputs, True, True)
    for moments in (torch.float32, torch.bfloat16):
        state = adam_state(2 * batch, 8, torch.float32, moments=moments)
        tables = [state[name] for name in ("rows", "exp_avg", "exp_avg_sq", "row_step")]
        generator = torch.Generator().manual_seed(2)
        for _ in range(3):
            index = torch.randperm(2 * batch, generator=generator)[:batch]
            tail = (state["clock"], state["history"])
            cpp.row_adam_catch_up(*tables, index.repeat(2), *tail, 0.9, 0.999, 1e-8)
            grad = torch.randn(batch, 8, generator=generator)
            lr = torch.tensor(0.01, dtype=torch.float64)
            cpp.row_adam_step(*tables, index, grad, *tail, lr, 0.9, 0.999, 1e-8, 0.0, "dense")
        results += state.values()
    return results


def test_results_do_not_depend_on_the_number_of_threads(threads):
    expected = everything(1, threads)
    for num_threads in (2, 3, 2):
        for result, value in zip(everything(num_threads, threads), expected, strict=True):
            assert torch.equal(result, value)


FORK = """
import os, torch
from torch.utils.data import DataLoader
from rvi_fast import relay_sample
from rvi_fast.layout import RowLayout
layout = RowLayout.resolve(8, (5, 9))
rows, relays = torch.randn(9000, layout.width), torch.randn(14, 8)
index = torch.arange(9000)
torch.set_num_threads(2)

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, item):
        return relay_sample(rows, relays, index, layout=layout).z

expected = relay_sample(rows, relays, index, layout=layout).z
for z in DataLoader(Rows(), batch_size=1, num_workers=1, multiprocessing_context="fork"):
    assert torch.equal(z[0], expected)
child = os.fork()
if child == 0:  # torch would still use two threads here, and its own parallel regions hang
    z = relay_sample(rows, relays, index, layout=layout).z
    os._exit(z.numpy().tobytes() != expected.numpy().tobytes())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
import rvi_fast.cpp
print("done on", rvi_fast.cpp.cpu_path())
"""


def test_a_forked_process_does_not_hang_and_the_environment_forces_its_path(path):
    result = run_python(FORK, RVI_FAST_CPU=path)
    assert f"done on {path}" in result.stdout, result.stderr


# Which implementation runs


def test_the_public_functions_run_in_cpp():
    assert ops.implementation("cpu") is cpp
    assert ops.unused("cpu") == {}
    posterior = RelayPosterior(50, 6, groups=(5, 7), sparse=True)
    optimizer = RowAdam(posterior, lr=0.1)
    for _ in range(3):
        posterior(torch.tensor([1, 1, 4])).kl.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert posterior.mean().isfinite().all()


def test_gradients_are_those_of_the_function():
    layout = RowLayout.resolve(3, (4, 5), form="mixture")
    rows, relays, index, seed = make(layout, 5, 6, torch.float64)
    rows.requires_grad_()
    relays.requires_grad_()
    torch.use_deterministic_algorithms(False)

    def sample(rows, relays):
        return tuple(functional.relay_sample(rows, relays, index, seed, layout=layout))

    assert torch.autograd.gradcheck(sample, (rows, relays))
    assert torch.autograd.gradgradcheck(sample, (rows, relays))


# adam_step


@pytest.mark.parametrize("case", testing.AdamStepContract.cases, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_step_equals_the_reference(case, dtype):
    contract = testing.AdamStepContract()
    inputs = contract.inputs("adam_step", case, dtype)
    contract.check(testing.Implementation("cpp", cpp), "adam_step", inputs)


def test_adam_step_does_not_depend_on_the_number_of_threads(threads):
    contract = testing.AdamStepContract()
    inputs = contract.inputs("adam_step", testing.AdamStepCase(1_100_003, 2), torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(contract.call(testing.Implementation("cpp", cpp), "adam_step", inputs))
    for other in results[1:]:
        testing.assert_bit_equal(other, results[0])
