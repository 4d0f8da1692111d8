"""Checkpoints that a thread writes while training goes on: bits, errors, kills, several processes."""

import os
import signal
import threading
import time
import warnings

import distributed_worker as worker
import pytest
import torch
from common import assert_same
from distributed_worker import assert_equal, together

from rvi_fast import fit, models
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors.tables import MappedTables
from rvi_fast.training import CheckpointError, CheckpointWarning, load_checkpoint
from rvi_fast.training.distributed import ranks
from rvi_fast.training.loop import background
from rvi_fast.training.runs import checkpoints, journal, sharded
from rvi_fast.training.runs.checkpoints import latest_epoch

N, D = 60, 5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "dense": {},
    "lazy": {"optimizer": "lazy"},
    "bfloat16": {"moment_dtype": torch.bfloat16},
    "blocks": {"block_rows": 8, "moment_dtype": torch.bfloat16},
    "vae": {"builder": models.vae},
}


def make(builder=models.rvi, **options):
    torch.manual_seed(0)
    options |= {} if builder is models.vae else {"groups": (3, 4)}
    return builder(N, D, latent_dim=3, hidden=(6,), **options)


def run(model, **options):
    options = {"epochs": 4, "batch_size": 8, "lr": 0.02, "checkpoint_every": 0} | options
    return fit(model, X, progress=False, **options)


class Held:
    """Holds whoever writes a checkpoint of an epoch until training has come to the next one."""

    def __init__(self, monkeypatch, epoch=2, error=None):
        self.epoch, self.error = epoch, error
        # who has come to write, and epochs that have been written
        self.threads, self.written = [], []
        self.passed, self.write = threading.Event(), ranks.save_checkpoint
        monkeypatch.setattr(ranks, "save_checkpoint", self.save)

    def save(self, run_dir, epoch, tensors, metadata):
        self.threads.append(threading.current_thread())
        if epoch == self.epoch:
            assert self.passed.wait(60), "no step is made while a checkpoint is written"
            if self.error is not None:
                raise self.error
        self.written.append(epoch)
        return self.write(run_dir, epoch, tensors, metadata)

    def has_come(self, count):
        """Whether so many have come to write; waits for the last of them."""
        while len(self.threads) < count:
            time.sleep(0.001)
        return True

    def __call__(self, model, history):
        if history.epochs == self.epoch + 1:
            self.passed.set()


def content(run_dir):
    """Every byte of the checkpoints that are kept."""
    files = sorted((run_dir / "checkpoints").glob("*/*"))
    return {path.relative_to(run_dir): path.read_bytes() for path in files}


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_goes_on_and_the_files_are_those_of_who_waits(tmp_path, monkeypatch, setting):
    options = dict(SETTINGS[setting])
    builder = options.pop("builder", models.rvi)
    waited, model = make(builder), make(builder)
    expected = run(waited, epochs=3, run_dir=tmp_path / "waited", **options)
    held = Held(monkeypatch)
    there = {"run_dir": tmp_path / "run", "checkpoint_async": True}
    history = run(model, epochs=3, callbacks=[held], **there, **options)
    assert_same(model, history, waited, expected)
    assert [thread is threading.main_thread() for thread in held.threads] == [False, False, True]
    found = content(tmp_path / "run")
    assert {path.parent.name for path in found} == {"epoch-000002", "epoch-000003"}
    assert found == content(tmp_path / "waited")


def test_no_thread_is_left_and_none_is_made_where_it_is_not_asked_for(tmp_path, monkeypatch):
    before = threading.active_count()
    run(make(), run_dir=tmp_path / "run", checkpoint_async=True)
    assert threading.active_count() == before
    held = Held(monkeypatch, epoch=9)
    run(make(), run_dir=tmp_path / "waited")
    assert set(held.threads) == {threading.main_thread()}


def test_without_room_for_a_copy_it_is_written_before_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "free_memory", lambda device: 1000)
    held = Held(monkeypatch, epoch=9)
    with pytest.warns(
        CheckpointWarning, match=r"copy of it needs \d+ bytes of memory, 1000 are free"
    ):
        run(make(), run_dir=tmp_path, checkpoint_async=True)
    assert set(held.threads) == {threading.main_thread()}
    assert latest_epoch(tmp_path) == 4


# tables in files


def in_files(folder, **options):
    """A model whose rows lie in files, and its history."""
    model = make(storage=folder / "tables")
    options = {"run_dir": folder / "run", "block_rows": 8, "checkpoint_async": True} | options
    return model, run(model, **options)


def test_tables_in_files_go_on_while_a_checkpoint_of_them_is_written(tmp_path, monkeypatch):
    waited, expected = in_files(tmp_path / "waited", checkpoint_async=False)
    held = Held(monkeypatch)
    model, history = in_files(tmp_path / "ours", callbacks=[held])
    assert_same(model, history, waited, expected)
    # the one before the first step, three, and the last
    aside = [thread is not threading.main_thread() for thread in held.threads]
    assert aside == [False, True, True, True, False]
    assert len([*(tmp_path / "ours" / "tables").glob("undo-*")]) == 1


def test_a_thread_puts_tables_on_disk_before_the_checkpoint(tmp_path, monkeypatch):
    events, sync, write = [], MappedTables.sync, ranks.save_checkpoint

    def told(what, function):
        def call(*arguments):
            events.append((what, threading.current_thread() is threading.main_thread()))
            return function(*arguments)

        return call

    monkeypatch.setattr(MappedTables, "sync", told("sync", sync))
    monkeypatch.setattr(ranks, "save_checkpoint", told("save", write))
    in_files(tmp_path)
    assert events.count(("save", False)) == 3
    for place, event in enumerate(events):
        if event == ("save", False):
            assert events[place - 1] == ("sync", False)


def test_without_room_for_a_second_journal_tables_in_files_wait(tmp_path, monkeypatch):
    held, size = Held(monkeypatch, epoch=9), N * 3 * 11 * 4
    # the first journal has room
    sizes = iter([10 * size])
    monkeypatch.setattr(journal, "free_disk", lambda directory: next(sizes, 100))
    with pytest.warns(CheckpointWarning, match="a second journal in .* needs up to"):
        in_files(tmp_path)
    assert set(held.threads) == {threading.main_thread()}


def test_what_a_full_disk_leaves_of_a_checkpoint_of_files_is_gone(tmp_path, monkeypatch):
    waited, expected = in_files(tmp_path / "waited", checkpoint_async=False)
    held, seen = Held(monkeypatch, error=OSError(28, "No space left on device")), []

    def look(model, history):
        seen.append(len([*(tmp_path / "ours" / "tables").glob("undo-*")]))

    with pytest.warns(CheckpointWarning, match="No space left"):
        model, history = in_files(tmp_path / "ours", callbacks=[look, held])
    assert seen[2] == 2
    assert_same(model, history, waited, expected)
    assert len([*(tmp_path / "ours" / "tables").glob("undo-*")]) == 1


@pytest.fixture
def forked(tmp_path):
    """A journal of checkpoint "a" and of "b", which is being written, and the tables of both."""
    table = torch.zeros(12, 2)
    kept = journal.Journal(tmp_path, {"rows": table}, 4)
    kept.begin("a")
    states = {"a": table.clone()}
    kept.keep(0)
    table[:4] += 1
    states["b"] = table.clone()
    kept.pending = "b"
    kept.fork()
    # a block that has changed since "a", one that has not, and one that does not
    kept.before_write(torch.tensor([1]))
    kept.before_write(torch.tensor([6, 7]))
    table[:8] += 1
    return kept, table, states


@pytest.mark.parametrize("token", ["a", "b"])
def test_a_forked_journal_goes_back_to_either_checkpoint(tmp_path, forked, token):
    _, table, states = forked
    again = journal.Journal(tmp_path, {"rows": table}, 4)
    again.go_on_from(tmp_path, token, "")
    again.roll_back()
    assert torch.equal(table, states[token])
    assert [path.name for path in tmp_path.glob("undo-*")] == [f"undo-{token}"]


@pytest.mark.parametrize("newest", ["a", "b"])
def test_a_journal_goes_on_from_the_newest_checkpoint_after_a_failure(
    tmp_path, monkeypatch, forked, newest
):
    kept, table, states = forked
    found = checkpoints.Checkpoint(tmp_path, 1, {}, {"journal": {"token": newest}})
    monkeypatch.setattr(journal, "latest_epoch", lambda run_dir: 1)
    monkeypatch.setattr(journal, "load_checkpoint", lambda run_dir: found)
    kept.settle(tmp_path)
    assert kept.token == newest
    assert [path.name for path in tmp_path.glob("undo-*")] == [f"undo-{newest}"]
    kept.before_write(torch.tensor([9]))
    table[8:] += 1
    kept.roll_back()
    assert torch.equal(table, states[newest])


# errors


def test_a_full_disk_is_told_of_and_the_next_checkpoint_is_written(tmp_path, monkeypatch):
    held = Held(monkeypatch, error=OSError(28, "No space left on device"))
    model, expected = make(), make()
    with pytest.warns(CheckpointWarning, match=r"No space left.*epoch-000001") as caught:
        history = run(model, run_dir=tmp_path, checkpoint_async=True, callbacks=[held])
    assert len(caught) == 1
    assert_same(model, history, expected, run(expected))
    assert [epoch for epoch, _ in checkpoints.checkpoints(tmp_path)] == [4, 3]


@pytest.mark.parametrize("epoch", [2, 3])
def test_what_a_writer_raises_is_raised_by_the_next_save_be_it_the_last(
    tmp_path, monkeypatch, epoch
):
    held = Held(monkeypatch, epoch, RuntimeError("of the writer"))
    seen = []
    with pytest.raises(RuntimeError, match="of the writer"):
        run(
            make(),
            run_dir=tmp_path,
            checkpoint_async=True,
            callbacks=[held, lambda _, history: seen.append(history.epochs)],
        )
    assert seen[-1] == epoch + 1
    assert latest_epoch(tmp_path) == epoch - 1


def test_what_could_not_be_written_is_told_of_where_something_else_ends_the_run(
    tmp_path, monkeypatch
):
    held = Held(monkeypatch, error=RuntimeError("of the writer"))

    def ends(model, history):
        if history.epochs == 3:
            raise LookupError("of a callback")

    with pytest.warns(CheckpointWarning, match="of the writer"), pytest.raises(LookupError):
        run(make(), run_dir=tmp_path, checkpoint_async=True, callbacks=[held, ends])


def test_the_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    held = Held(monkeypatch, epoch=4, error=OSError(28, "No space left on device"))
    held.passed.set()
    with (
        pytest.warns(CheckpointWarning, match="No space left"),
        pytest.raises(CheckpointError, match="No space left"),
    ):
        run(make(), run_dir=tmp_path, checkpoint_async=True)


def test_a_nan_waits_for_the_checkpoint_that_it_names(tmp_path, monkeypatch):
    held, model, seen = Held(monkeypatch), make(), []

    def breaks(module, _, result):
        seen.append(module.training)
        if module.training and sum(seen) == 19 and held.has_come(2):
            held.passed.set()
            return result * torch.nan
        return result

    def slowly(*arguments):
        time.sleep(0.3)
        return write(*arguments)

    write = held.write
    held.write = slowly
    model.decoder.register_forward_hook(breaks)
    with pytest.raises(FloatingPointError, match=r"last good checkpoint is .*epoch-000002"):
        run(model, run_dir=tmp_path, checkpoint_async=True)
    assert latest_epoch(tmp_path) == 2


# signals and kills


def test_ctrl_c_waits_for_the_writer_and_leaves_a_checkpoint_of_its_own(tmp_path, monkeypatch):
    held, model, sent = Held(monkeypatch), make(), []

    def send(module, *_):
        sent.append(module.training)
        # the third step of the third epoch
        if module.training and sum(sent) == 19 and held.has_come(2):
            os.kill(os.getpid(), signal.SIGINT)
            held.passed.set()

    model.decoder.register_forward_hook(send)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="in epoch 3 of 4, after 3 of 8 steps"):
            run(model, run_dir=tmp_path, checkpoint_async=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert held.written == [1, 2, 2]
    assert load_checkpoint(tmp_path).metadata["partial"]["steps"] == 3
    model, whole = make(), make()
    for other in (model, whole):  # a hook keeps a step from being fused
        other.decoder.register_forward_hook(lambda *_: None)
    resumed = run(model, run_dir=tmp_path, checkpoint_async=True, resume=True)
    assert_same(model, resumed, whole, run(whole))


def dying(rank, size, *, calls, **changes):
    """Training in which the writer of one process kills that before a checkpoint has its name."""
    publish, left = checkpoints.publish_checkpoint, [calls]

    def counted(*arguments):
        left[0] -= 1
        if left[0] == 0:
            assert threading.current_thread() is not threading.main_thread()
            os.kill(os.getpid(), signal.SIGKILL)
        return publish(*arguments)

    checkpoints.publish_checkpoint = sharded.publish_checkpoint = counted
    return trained_by(rank, size, **changes)


def trained_by(rank, size, **changes):
    if size == 1 and "folder" in changes:
        return in_files(changes["folder"])
    if size == 1:
        return run(make(), run_dir=changes["run_dir"], checkpoint_async=True)
    return worker.train(rank, size, make_model=worker.built, **changes)


def several(size, folder, run_dir, **changes):
    """State of processes that train with checkpoints in the background."""
    changes = {"run_dir": str(run_dir), "checkpoint_every": 0.0, "epochs": 4} | changes
    return together(worker.run(size, trained_by, folder, **changes))


def test_a_kill_before_the_name_leaves_the_checkpoint_before(tmp_path):
    process = worker._context.Process(
        target=dying, args=(0, 1), kwargs={"calls": 3, "run_dir": tmp_path}
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("*"))] == [
        ".writing-epoch-000003",
        "epoch-000001",
        "epoch-000002",
    ]
    assert load_checkpoint(tmp_path).epoch == 2
    model, whole = make(), make()
    resumed = run(model, run_dir=tmp_path, checkpoint_async=True, resume=True)
    assert_same(model, resumed, whole, run(whole))


def ends_in_the_next_epoch(rank, size, *, named, folder):
    """Training that is killed in the midst of an epoch, while the checkpoint before is written."""
    publish, reached = checkpoints.publish_checkpoint, threading.Event()
    step_batch, steps = RowAdam.step_batch, []

    def counted(self, *arguments):
        steps.append(1)
        step_batch(self, *arguments)
        if len(steps) == 22:  # the 6th of the third epoch
            reached.set()
            threading.Event().wait(60)

    def dies(*arguments):
        second = arguments[2]["epoch"] == 2
        path = publish(*arguments) if named or not second else None
        if second:
            assert reached.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    RowAdam.step_batch, checkpoints.publish_checkpoint = counted, dies
    in_files(folder)


@pytest.mark.parametrize("named", [False, True])
def test_files_that_have_gone_on_go_back_to_either_checkpoint(tmp_path, named):
    process = worker._context.Process(
        target=ends_in_the_next_epoch,
        args=(0, 1),
        kwargs={"named": named, "folder": tmp_path / "ours"},
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert latest_epoch(tmp_path / "ours" / "run") == 1 + named
    # blocks that both hold
    first, second = (tmp_path / "ours" / "tables").glob("undo-*")
    assert {path.name for path in first.iterdir()} & {path.name for path in second.iterdir()}
    resumed = in_files(tmp_path / "ours", resume=True)
    whole = in_files(tmp_path / "whole", checkpoint_async=False)
    assert_same(*resumed, *whole)


# several processes


def test_several_processes_write_what_those_write_that_wait(tmp_path):
    changes = {"moment_dtype": torch.bfloat16}
    waited = several(2, tmp_path / "1", tmp_path / "waited", **changes)
    got = several(2, tmp_path / "2", tmp_path / "run", checkpoint_async=True, **changes)
    assert_equal(got, waited)
    assert content(tmp_path / "run") == content(tmp_path / "waited")


def test_after_a_kill_of_one_of_several_the_checkpoint_before_is_gone_on_with(tmp_path):
    changes = {"run_dir": str(tmp_path / "run"), "checkpoint_every": 0.0, "epochs": 4}
    processes = worker.start(
        2, dying, tmp_path / "1", timeout=10.0, calls=2, checkpoint_async=True, **changes
    )
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 1]
    assert latest_epoch(tmp_path / "run") == 1
    again = {"checkpoint_async": True, "resume": True}
    got = several(2, tmp_path / "2", tmp_path / "run", **again)
    assert_equal(got, several(2, tmp_path / "3", tmp_path / "whole"))


def failing(rank, size, *, error, **changes):
    """Training in which the second process cannot write its part of the second checkpoint."""
    write, calls = sharded.write_tensors, []

    def counted(*arguments):
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise error
        return write(*arguments)

    sharded.write_tensors = counted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            worker.train(rank, size, make_model=worker.built, **changes)
            raised = None
        except ValueError as found:
            raised = str(found)
    return raised, [str(w.message) for w in caught if w.category is CheckpointWarning]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("of the writer")])
def test_what_one_process_cannot_write_all_are_told_of(tmp_path, error):
    changes = {"run_dir": str(tmp_path / "run"), "checkpoint_every": 0.0, "epochs": 4}
    changes |= {"checkpoint_async": True, "error": error}
    told = worker.run(2, failing, tmp_path / "1", **changes)
    if isinstance(error, OSError):
        assert all(raised is None and len(said) == 1 for raised, said in told)
        assert all("No space left" in said[0] for _, said in told)
        assert latest_epoch(tmp_path / "run") == 4
    else:
        assert all(raised == "of the writer" for raised, _ in told)
        assert latest_epoch(tmp_path / "run") == 1
