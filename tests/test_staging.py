"""Tables in host memory under a model on a GPU: the same training as on the device.

Shown without one: here the CPU is told that it is elsewhere, so that all its reads and steps go through
copies. What is CUDA's own, streams and pinned memory, is shown by test_gpu.py and by a stand-in.
"""

import contextlib
import copy
import pickle
import threading
from functools import partial

import pytest
import torch
from common import assert_same, short_fit, small_model
from torch import nn

import rvi_fast
from rvi_fast import RelayPosterior, impute, infer, models
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors import tables as storage
from rvi_fast.reference import fused_step as six
from rvi_fast.testing import training_step
from rvi_fast.training.loop import fused_step as loop
from rvi_fast.training.places.mover import Mover
from rvi_fast.training.places.order import EpochOrder
from rvi_fast.training.places.staging import Staging

N, D, BLOCK = 131, 4, 7
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
X[torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
PLACES = ["host", "file"]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    monkeypatch.setattr(storage.HostTables, "staged", lambda self, device: True)
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rvi_fast")]


@pytest.fixture
def where(tmp_path):
    return lambda place: tmp_path / "tables" if place == "file" else place


make = partial(small_model, N, D)


def run(model, x=X, **options):
    return short_fit(model, x, **{"block_rows": BLOCK} | options)


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
@pytest.mark.parametrize("builder", [models.rvi, models.vad])
@pytest.mark.parametrize("eval_every", [0, 2])
@pytest.mark.parametrize("place", PLACES)
def test_the_result_is_that_of_tables_on_the_device(where, place, optimizer, builder, eval_every):
    options = {"optimizer": optimizer, "eval_every": eval_every}
    expected, model = make(builder=builder), make(where(place), builder)
    assert model.posterior.staged
    expected_history = run(expected, **options)
    assert_same(model, run(model, **options), expected, expected_history)
    assert torch.equal(impute(model, X), impute(expected, X))


@pytest.mark.parametrize(
    ("block_rows", "batch_size"), [(1, 8), (5, 30), (40, 8), (200, 8), (3, 200)]
)
def test_blocks_of_any_size_and_batches_across_windows(block_rows, batch_size):
    options = {"block_rows": block_rows, "batch_size": batch_size, "epochs": 3}
    expected, model = make(), make("host")
    expected_history = run(expected, **options)
    assert_same(model, run(model, **options), expected, expected_history)


@pytest.mark.parametrize("moments", [None, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [8, 30])
@pytest.mark.parametrize("groups", [(3, 5), ()])
def test_six_launches_on_slots_are_those_on_the_device(monkeypatch, batch_size, groups, moments):
    steps, options = [], {"batch_size": batch_size, "moment_dtype": moments}

    class Watched(loop.FusedStep):
        def launch(self, index, full_size):
            steps.append(len(index))
            return super().launch(index, full_size)

    monkeypatch.setattr(loop, "FusedStep", Watched)
    monkeypatch.setattr(loop, "launches_on", lambda _: six)
    expected, model = make(groups=groups), make("host", groups=groups)
    expected_history = run(expected, **options)
    assert len(steps) == 4 * -(-N // batch_size)
    assert_same(model, run(model, **options), expected, expected_history)
    assert len(steps) == 2 * 4 * -(-N // batch_size)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", ["hook", "decoder", "float64", "pixels"])
def test_every_kind_of_step_runs_on_slots(where, place, change):
    pair = [make(), make(where(place)) if change != "float64" else make("host")]
    x, mask = X, None
    for model in pair:
        if change == "hook":  # autograd all the way
            model.register_forward_hook(lambda *_: None)
        elif change == "decoder":
            model.decoder = nn.Sequential(*model.decoder, nn.Identity())
        elif change == "float64":
            model.double()
    if change == "pixels":
        x, mask = (X.nan_to_num() * 50).clamp(0, 255).to(torch.uint8), ~X.isnan()
    expected, model = pair
    expected_history = run(expected, x, mask=mask)
    assert_same(model, run(model, x, mask=mask), expected, expected_history)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_is_resumed_bit_for_bit(tmp_path, where, place):
    options = {"eval_every": 3, "checkpoint_every": 0}
    expected, half = make(), make()
    expected_history = run(expected, epochs=5, **options)
    run(half, epochs=2, **options)
    run(make(where(place)), epochs=2, run_dir=tmp_path / "run", **options)
    assert_same(rvi_fast.load(tmp_path / "run"), None, half, None)
    model = make(where(place))
    history = run(model, epochs=5, run_dir=tmp_path / "run", resume=True, **options)
    assert_same(model, history, expected, expected_history)
    assert_same(rvi_fast.load(tmp_path / "run"), None, expected, None)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_broken_off_within_an_epoch_goes_back_to_its_checkpoint(
    tmp_path, monkeypatch, where, place
):
    expected, model, steps = make(), make(where(place)), []
    forward = type(model.likelihood).forward

    def stop(self, *args):
        steps.append(1 / (len(steps) != 40))  # 17 steps make an epoch
        return forward(self, *args)

    monkeypatch.setattr(type(model.likelihood), "forward", stop)
    model.decoder = nn.Sequential(*model.decoder, nn.Identity())
    with pytest.raises(ZeroDivisionError):
        run(model, run_dir=tmp_path / "run", checkpoint_every=0, eval_every=0)
    monkeypatch.undo()
    monkeypatch.setattr(storage.HostTables, "staged", lambda self, device: True)
    assert model.posterior._row_optimizer is None
    history = run(model, run_dir=tmp_path / "run", resume=True, checkpoint_every=0, eval_every=0)
    expected.decoder = nn.Sequential(*expected.decoder, nn.Identity())
    assert_same(model, history, expected, run(expected, eval_every=0))


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
@pytest.mark.parametrize("place", PLACES)
def test_moments_of_half_the_size_are_those_on_the_device(tmp_path, where, place, optimizer):
    options = {"moment_dtype": torch.bfloat16, "optimizer": optimizer, "checkpoint_every": 0}
    expected = make()
    expected_history = run(expected, epochs=4, **options)
    run(make(where(place)), epochs=2, run_dir=tmp_path / "run", **options)
    model = make(where(place))
    history = run(model, epochs=4, run_dir=tmp_path / "run", resume=True, **options)
    assert_same(model, history, expected, expected_history)


def test_a_run_may_change_between_the_devices(tmp_path, where, monkeypatch):
    """A table in files that was trained on the CPU goes on on a GPU, and back."""
    expected = make()
    expected_history = run(expected, epochs=4, eval_every=0)
    for epochs, staged in ((1, False), (2, True), (3, False), (4, True)):
        monkeypatch.setattr(storage.HostTables, "staged", lambda self, device, s=staged: s)
        model = make(where("file"))
        options = {"epochs": epochs, "run_dir": tmp_path / "run", "resume": True, "eval_every": 0}
        history = run(model, **options)
    assert_same(model, history, expected, expected_history)


@pytest.mark.parametrize("place", PLACES)
def test_each_row_crosses_once_each_way_in_an_epoch(where, place, monkeypatch):
    moved = {"to_device": [], "to_host": []}
    for name, lines in moved.items():
        method = getattr(Mover, name)

        def count(self, pairs, lines=lines, method=method):
            lines.append(len(pairs[0][0]))
            assert {len(part) for pair in pairs for part in pair} == {lines[-1]}
            return method(self, pairs)

        monkeypatch.setattr(Mover, name, count)
    model = make(where(place))
    catch_up = RowAdam._catch_up
    monkeypatch.setattr(
        RowAdam,
        "_catch_up",
        lambda self, index: (
            catch_up(self, index) if self.posterior is not model.posterior else None
        ),
    )
    run(model, epochs=3, eval_every=0)
    assert sum(moved["to_device"]) == sum(moved["to_host"]) == 3 * N


def test_blocks_that_enter_meanwhile_do_not_disturb_a_backward():
    model = make("host")
    staging = Staging(model, RowAdam(model.posterior), 3, 8)
    with staging.epoch(EpochOrder(N, 3, torch.Generator().manual_seed(0))):
        staging.enter(0, 3)
        sample = staging.posterior(staging.slots_of(torch.tensor([2, 0])), seed=1)
        staging.enter(3, 6)
        sample.kl.sum().backward()
        assert staging.posterior.rows.grad is not None
    model.posterior._row_optimizer.detach()


def test_no_more_than_three_windows_lie_on_the_device():
    model = make("host")
    staging = Staging(model, RowAdam(model.posterior), 3, 8)
    assert {len(table) for table in staging.slots.values()} == {3 * 4 * 3}
    assert staging.posterior.relays is model.posterior.relays
    model.posterior._row_optimizer.detach()


@pytest.mark.parametrize("place", PLACES)
def test_reads_equal_those_of_tables_on_the_device(where, place):
    expected, model = make().posterior, make(where(place)).posterior
    for index in (torch.tensor([7, 130, 7], dtype=torch.int32), torch.arange(0), None):
        for read in ("mean", "std", "coefficients"):
            assert torch.equal(getattr(model, read)(index), getattr(expected, read)(index))
        assert all(map(torch.equal, model.selected(index), expected.selected(index)))
        if index is not None:
            for options in ({"num_samples": 3}, {"noise_index": index + 5}):
                got, want = (p(index, seed=3, **options) for p in (model, expected))
                assert torch.equal(got.z, want.z)
                assert torch.equal(got.kl, want.kl)
    index = torch.tensor([1, 5])
    assert torch.equal(
        model.mean(index, groups=1, deviation=False),
        expected.mean(index, groups=1, deviation=False),
    )
    assert torch.equal(model.mean_row(), expected.mean_row())
    for bad in (torch.tensor([N]), torch.tensor([-1])):
        with pytest.raises(IndexError, match=f"index: .* 0 to {N - 1}"):
            model(bad)
        with pytest.raises(IndexError, match=f"index: .* 0 to {N - 1}"):
            model.mean(bad)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.staged
        assert torch.equal(other.rows, expected.rows)
        assert torch.equal(other(index, seed=1).z, expected(index, seed=1).z)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("moments", [None, torch.bfloat16])
def test_a_loop_of_ones_own_trains_as_on_the_device(where, place, mode, sparse, moments):
    results = []
    for storage_ in ("device", where(place)):
        torch.manual_seed(0)
        posterior = RelayPosterior(40, 3, groups=(4,), sparse=sparse, storage=storage_)
        optimizer = RowAdam(posterior, lr=0.1, mode=mode, moment_dtype=moments)
        for step in range(1, 9):
            training_step(posterior, optimizer, step)
        optimizer.flush()
        results.append({**optimizer.raw_tables(), **optimizer.raw_state()})
    for name, expected in results[0].items():
        assert torch.equal(results[1][name], expected), name


@pytest.mark.parametrize("place", PLACES)
def test_new_datapoints_are_inferred_a_batch_at_a_time(where, place):
    expected, model = make(), make(where(place))
    inferred = [infer(m, X[:50], steps=8, batch_size=20) for m in (expected, model)]
    assert inferred[1].staged
    assert torch.equal(inferred[1].rows, inferred[0].rows)
    assert torch.equal(
        impute(model, X[:50], posterior=inferred[1]),
        impute(expected, X[:50], posterior=inferred[0]),
    )


class Recorder:
    """What `Mover` asks of CUDA, in order."""

    def __init__(self, monkeypatch):
        self.calls = calls = []

        class Stream:
            def __init__(self, device):
                self.device = device

            def record_event(self):
                calls.append("record")
                return "mark"

            def wait_event(self, event):
                calls.append(f"wait for {event}")

            def synchronize(self):
                calls.append("synchronize")

        empty_like, copy_ = torch.empty_like, torch.Tensor.copy_

        def pinned(tensor, pin_memory=False):
            calls.append(f"pinned {pin_memory}")
            return empty_like(tensor)

        def copied(self, source, non_blocking=False):
            calls.append("copy" + " and go on" * non_blocking)
            return copy_(self, source)

        @contextlib.contextmanager
        def within(stream):
            calls.append("on the stream")
            yield
            calls.append("off the stream")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
        monkeypatch.setattr(torch, "empty_like", pinned)
        monkeypatch.setattr(torch.Tensor, "copy_", copied)


def test_copies_go_through_pinned_memory_on_a_stream_of_their_own(monkeypatch):
    host, slots = torch.arange(6.0), torch.zeros(4)
    recorder = Recorder(monkeypatch)
    mover = Mover(torch.device("cuda", 0), [host[:4]])
    with mover.at_work():
        mover.to_device([(host[2:6], slots)])
    assert slots.tolist() == [2, 3, 4, 5]
    assert recorder.calls == [
        "pinned True",
        "on the stream",
        "copy",  # into the buffer
        "copy and go on",
        "off the stream",
        "synchronize",
    ]
    recorder.calls.clear()
    with mover.at_work(mover.mark()):
        mover.to_host([(slots[:2], host[:2])])
    assert host.tolist() == [2, 3, 2, 3, 4, 5]
    assert recorder.calls == [
        "record",
        "wait for mark",
        "on the stream",
        "copy and go on",
        "synchronize",
        "copy",  # out of the buffer
        "off the stream",
        "synchronize",
    ]


def test_a_block_leaves_after_the_steps_that_were_asked_for_before(where, monkeypatch):
    events = []
    monkeypatch.setattr(Mover, "mark", lambda self: events.append("mark") or len(events))
    leave = Staging.leave
    monkeypatch.setattr(
        Staging, "leave", lambda self, *args: events.append(args[2]) or leave(self, *args)
    )
    run(make("host"), epochs=1, eval_every=0)
    assert events.count("mark") == len(EpochOrder(N, BLOCK, torch.Generator()).windows)
    # each block goes with the mark of its window
    marks = [event for event in events if event != "mark"]
    assert marks == sorted(marks)
    assert len(marks) == -(-N // BLOCK)
    assert all(events[mark - 1] == "mark" for mark in marks)


def test_rows_that_became_infinite_are_noticed_as_they_leave(where):
    model = make("host")
    with torch.no_grad():
        model.posterior.rows[-1, 3] = torch.inf  # between two parts, where no loss looks
    with pytest.raises(FloatingPointError, match=r"posterior\.rows became nan or inf in epoch 1"):
        run(model)
