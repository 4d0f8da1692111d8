"""Moments of the rows in bfloat16: rounded at random, so that their means are those of float32."""

import copy

import pytest
import torch

import rvi_fast
from rvi_fast import RelayPosterior, fit, models, reference, testing
from rvi_fast.ops import ops
from rvi_fast.optim import MODES, RowAdam
from rvi_fast.testing import assert_bit_equal, training_step

IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", testing.installed(), ids=lambda found: f"{found.name}-{found.device}"
)
N, D = 61, 4
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
X[torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan


def tables(num_data, width, value=0.0):
    """Rows, bfloat16 moments that all hold a number, and steps."""
    moments = torch.full((2, num_data, width), value, dtype=torch.bfloat16)
    return torch.zeros(num_data, width), *moments, torch.zeros(num_data, dtype=torch.int32)


def step(implementation, state, index, grad, clock, *, beta1=0.9, mode="lazy"):
    """One step of an implementation on its device; the tables as they are afterwards, on the CPU."""
    device = implementation.device
    state = [table.to(device, copy=True) for table in state]
    history = torch.zeros(8, reference.HISTORY_COLUMNS, dtype=torch.float64, device=device)
    lr = torch.tensor(0.01, dtype=torch.float64, device=device)
    inputs = (index.to(device), grad.to(device), torch.tensor([clock, clock], device=device))
    constants = (beta1, 0.999, 1e-8, 0.0, mode)
    function = implementation.namespace.row_adam_step
    assert function(*state, *inputs, history, lr, *constants) is None
    return [table.cpu() for table in state]


# rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_has_the_value_as_its_mean(dtype):
    bits = torch.arange(2**16)
    for value in (1.001, -1.5409961, 1.99999, 7.3e-38, -2.9e38, 0.1):
        exact = torch.tensor(value)  # a float32: 16 bits are all that is cut off
        rounded = reference.to_bfloat16(exact.to(dtype).expand(2**16), bits)
        assert len(rounded.unique()) == 2
        assert float(rounded.double().mean()) == pytest.approx(float(exact), rel=1e-14)


@IMPLEMENTATIONS
@pytest.mark.parametrize("width", [1, 4, 7, 63, 139])
def test_numbers_and_random_bits_are_those_of_the_reference(implementation, width):
    testing.RowAdamContract().check_rounding(implementation, width)


def test_random_bits_differ_between_rows_elements_steps_and_moments():
    index = torch.tensor([0, 1, 2**32, 2**40 + 1])
    words = torch.stack([reference.moment_words(index, torch.tensor(c), 9) for c in (1, 2, 2**31)])
    assert len(torch.cat((words >> 16, words & 0xFFFF)).unique()) > 0.98 * 2 * words.numel()
    assert torch.equal(reference.moment_words(index[2:], torch.tensor(2), 5), words[1, 2:, :5])


@IMPLEMENTATIONS
def test_the_two_moments_are_rounded_by_different_bits(implementation):
    testing.RowAdamContract().check_bits_of_the_moments(implementation)


@IMPLEMENTATIONS
@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_a_batch_changes_nothing(implementation, mode):
    generator = torch.Generator().manual_seed(0)
    index, grad = torch.randperm(50, generator=generator), torch.randn(50, 7, generator=generator)
    order = torch.randperm(50, generator=generator)
    results = [
        step(implementation, tables(50, 7), rows, values, 0, mode=mode)
        for rows, values in ((index, grad), (index[order], grad[order]))
    ]
    names = ("rows", "exp_avg", "exp_avg_sq", "row_step")
    first, second = (dict(zip(names, result, strict=True)) for result in results)
    assert_bit_equal(first, second)


# what it is for


@IMPLEMENTATIONS
def test_a_second_moment_falls_where_the_nearest_number_would_stand_still(implementation):
    steps, ones = 300, torch.ones((), dtype=torch.bfloat16)
    nearest = (ones.float() * 0.999).to(torch.bfloat16)
    assert nearest == ones  # and so for ever
    state = tables(64, 64, 1.0)
    for clock in range(steps):
        state = step(implementation, state, torch.arange(64), torch.zeros(64, 64), clock)
    # half a percent is eight standard deviations of the mean of 4096 random walks
    assert float(state[2].double().mean()) == pytest.approx(0.999**steps, rel=5e-3)
    assert float(state[1].double().mean()) == pytest.approx(0.9**steps, rel=5e-2)


@pytest.mark.parametrize("gap", [1, 100])
def test_moments_of_resting_rows_decay_as_they_should_however_often_they_are_read(gap):
    """Dense mode: one row is trained, the others are read now and then and rest in between."""
    torch.manual_seed(0)
    posterior = RelayPosterior(400, 6, groups=(), sparse=True)
    optimizer = RowAdam(posterior, lr=1e-9, moment_dtype=torch.bfloat16)
    moments = optimizer.raw_tables()
    for name in ("exp_avg", "exp_avg_sq"):
        moments[name].fill_(1.0)
    for count in range(1, 301):
        training_step(posterior, optimizer, 0, torch.tensor([0]))
        if count % gap == 0:
            posterior.mean(torch.arange(400))
    used = torch.ones(posterior.rows.shape[1], dtype=torch.bool)
    exp_avg, exp_avg_sq = (moments[name][1:, used].double() for name in ("exp_avg", "exp_avg_sq"))
    assert float(exp_avg_sq.mean()) == pytest.approx(0.999**300, rel=5e-3)
    assert float(exp_avg.mean()) == pytest.approx(0.9**300, rel=5e-2)
    for _ in range(600):  # 0.9^900 is below the least normal number
        training_step(posterior, optimizer, 0, torch.tensor([0]))
    optimizer.flush()
    assert not moments["exp_avg"][1:].any()


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_as_with_float32(mode):
    losses = []
    for dtype in (None, torch.bfloat16):
        losses.append(run(make(), epochs=40, optimizer=mode, moment_dtype=dtype)["loss"])
    plain, narrow = losses
    assert plain != narrow
    assert narrow[-1] == pytest.approx(plain[-1], abs=0.02 * (plain[0] - plain[-1]))


# RowAdam


def make_posterior(dtype=torch.float32):
    torch.manual_seed(0)
    return RelayPosterior(40, 5, groups=(6,), sparse=True, dtype=dtype)


@pytest.mark.parametrize("mode", MODES)
def test_training_continues_bit_for_bit_from_a_state_dict(mode):
    posterior, fresh = make_posterior(), make_posterior()
    options = {"mode": mode, "moment_dtype": torch.bfloat16}
    optimizer, restored = RowAdam(posterior, 0.05, **options), RowAdam(fresh, 0.1, **options)
    for count in range(7):
        training_step(posterior, optimizer, count)
    saved = copy.deepcopy((posterior.state_dict(), optimizer.state_dict()))
    assert saved[1]["state"][0]["exp_avg_sq"].dtype == torch.bfloat16
    fresh.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])
    for count in range(7, 20):
        training_step(posterior, optimizer, count)
        training_step(fresh, restored, count)
    assert torch.equal(posterior.mean(), fresh.mean())
    assert_bit_equal(optimizer.state_dict()["state"][0], restored.state_dict()["state"][0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sparse", [True, False])
def test_rows_of_a_shard_are_rounded_as_in_the_whole_table(mode, sparse):
    tables = []
    for shard in (range(40), range(23, 40)):
        torch.manual_seed(0)
        posterior = RelayPosterior(40, 5, groups=(6,), sparse=sparse, shard=shard)
        optimizer = RowAdam(posterior, 0.05, mode=mode, moment_dtype=torch.bfloat16)
        for count in range(12):
            own = torch.tensor([5 * count % 17, 3, 11, 3]) + 23 - shard.start
            training_step(posterior, optimizer, count, own)
        optimizer.flush()
        tables.append({name: table[-17:] for name, table in optimizer.raw_tables().items()})
    assert bool((tables[0]["exp_avg"] != 0).any())
    assert_bit_equal(*tables)


def test_state_of_another_dtype_is_refused_and_changes_nothing():
    optimizers = [RowAdam(make_posterior(), moment_dtype=dtype) for dtype in (None, torch.bfloat16)]
    for optimizer in optimizers:
        training_step(optimizer.posterior, optimizer, 3)
    for optimizer, other in (optimizers, optimizers[::-1]):
        before = copy.deepcopy(optimizer.state_dict()["state"][0])
        with pytest.raises(ValueError, match=r"exp_avg: expected torch\.\w+, got torch\.\w+; make"):
            optimizer.load_state_dict(other.state_dict())
        assert_bit_equal(optimizer.state_dict()["state"][0], before)


@pytest.mark.parametrize(
    ("rows", "moments", "error", "message"),
    [
        (torch.float32, "bfloat16", TypeError, r"expected a torch\.dtype or None, got 'bfloat16'"),
        (torch.float32, torch.float16, ValueError, r"or torch\.bfloat16 .*, got torch\.float16"),
        (torch.float32, torch.float64, ValueError, r"or torch\.bfloat16 .*, got torch\.float64"),
        (torch.float64, torch.bfloat16, ValueError, r"expected torch\.float64 .*, got .*bfloat16"),
        (torch.float64, torch.float32, ValueError, r"expected torch\.float64 .*, got .*float32"),
    ],
)
def test_other_dtypes_are_refused(rows, moments, error, message):
    with pytest.raises(error, match=f"moment_dtype: .*{message}"):
        RowAdam(make_posterior(rows), moment_dtype=moments)
    with pytest.raises(error, match=f"moment_dtype: .*{message}"):
        rvi_fast.estimate_memory(10, 3, dtype=rows, moment_dtype=moments)
    with pytest.raises(error, match=f"moment_dtype: .*{message}"):
        fit(make().to(rows), X.to(rows), moment_dtype=moments, progress=False)
    with pytest.raises(ValueError, match="moment_dtype: expected None for an encoder"):
        fit(models.vae(N, D), X, moment_dtype=torch.bfloat16, progress=False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        (("float64", "bfloat16", "bfloat16"), r"exp_avg: expected torch\.float64, got"),
        (("float32", "float64", "float64"), r"exp_avg: expected .*float32 or torch\.bfloat16, got"),
        (("float32", "bfloat16", "float32"), r"exp_avg_sq: expected torch\.bfloat16, got"),
        (("float32", "float32", "bfloat16"), r"exp_avg_sq: expected torch\.float32, got"),
    ],
)
@pytest.mark.parametrize("function", testing.RowAdamContract.functions)
def test_tables_that_do_not_go_together_are_refused_by_the_op(function, dtypes, message, device):
    contract = testing.RowAdamContract()
    inputs = contract.inputs(function, testing.RowAdamCase(7, 3, 4), torch.float32)
    for name, dtype in zip(("rows", "exp_avg", "exp_avg_sq"), dtypes, strict=True):
        inputs[name] = inputs[name].to(getattr(torch, dtype))
    inputs = testing._each_tensor(inputs, lambda value: value.to(device))
    arguments = [inputs[name] for name in testing._arguments(function)]
    with pytest.raises(TypeError, match=message):
        getattr(ops, function)(*arguments)


# training


def make(place="device"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return models.rvi(N, D, latent_dim=3, hidden=(5,), groups=(3, 5), storage=place)


def run(model, **options):
    options = {"epochs": 4, "batch_size": 8, "lr": 0.02, "block_rows": 7} | options
    return fit(model, X, **{"progress": False, "moment_dtype": torch.bfloat16} | options)


def assert_same(model, other):
    assert_bit_equal(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_the_result_does_not_depend_on_where_the_tables_lie(tmp_path, mode):
    results = []
    for place in ("device", "host", tmp_path):
        model = make(place)
        results.append((model, run(model, optimizer=mode)))
    assert (tmp_path / "exp_avg.bin").stat().st_size * 2 == (tmp_path / "rows.bin").stat().st_size
    for model, history in results[1:]:
        assert history == results[0][1]
        assert_same(model, results[0][0])


@pytest.mark.parametrize("block_rows", [7, None])
@pytest.mark.parametrize("place", ["device", "file"])
def test_a_run_that_was_broken_off_goes_on_bit_for_bit(tmp_path, place, block_rows):
    def stop(_, history):
        return 1 / (history.epochs != 3) < 0

    expected, where = make(), tmp_path / "tables" if place == "file" else place
    history = run(expected, block_rows=7 if place == "file" else block_rows)
    given = {"run_dir": tmp_path / "run", "block_rows": 7 if place == "file" else block_rows}
    with pytest.raises(ZeroDivisionError):
        run(make(where), callbacks=[stop], checkpoint_every=0, **given)
    model = make(where)
    assert run(model, resume=True, **given) == history
    assert_same(model, expected)
    assert_same(rvi_fast.load(tmp_path / "run"), expected)


@pytest.mark.parametrize("place", ["device", "file"])
@pytest.mark.parametrize("first", [None, torch.bfloat16])
def test_going_on_with_another_dtype_is_refused_and_harms_nothing(tmp_path, place, first):
    where = tmp_path / "tables" if place == "file" else place
    run(make(where), run_dir=tmp_path / "run", moment_dtype=first)
    second = torch.bfloat16 if first is None else torch.float32
    names = ["float32", "bfloat16"]
    before, after = names if first is None else names[::-1]
    model = make(where)
    rows = model.posterior.rows.detach().clone()
    with pytest.raises(ValueError, match=f"moment_dtype: expected '{before}' .*, got '{after}'"):
        run(model, run_dir=tmp_path / "run", moment_dtype=second, resume=True, epochs=6)
    assert torch.equal(model.posterior.rows, rows)
    history = run(model, run_dir=tmp_path / "run", moment_dtype=first, resume=True, epochs=6)
    expected = make()
    assert history == run(expected, moment_dtype=first, epochs=6)
    assert_same(model, expected)


@pytest.mark.parametrize("storage", ["device", "tables"])
def test_memory_is_counted_to_the_byte(storage):
    sizes = {"latent_dim": 5, "groups": (3, 6), "hidden": (4,)}
    estimates = [
        rvi_fast.estimate_memory(1000, 7, storage=storage, moment_dtype=dtype, **sizes)
        for dtype in (None, torch.float32, torch.bfloat16)
    ]
    assert estimates[0] == estimates[1]
    optimizer = RowAdam(models.rvi(1000, 7, **sizes).posterior, moment_dtype=torch.bfloat16)
    tables = optimizer.raw_tables()
    assert estimates[2].tables == tables.pop("rows").nbytes
    assert estimates[2].moments == sum(table.nbytes for table in tables.values())
    saved = estimates[0].moments - estimates[2].moments
    assert estimates[0].total - estimates[2].total == saved == estimates[2].tables
