"""Tables in files: the same training as in memory, killed or not, and no surprise from a full disk."""

import copy
import errno
import json
import multiprocessing
import os
import pickle
import random
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from common import assert_same, killed_until_it_ends, short_fit, small_model

import rvi_fast
from rvi_fast import RelayPosterior, fit, impute, models
from rvi_fast.memory import pages, room
from rvi_fast.memory.room import InsufficientMemory
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors import checksums
from rvi_fast.posteriors import tables as storage
from rvi_fast.training import CheckpointError, RunDirectoryInUse
from rvi_fast.training.distributed import ranks
from rvi_fast.training.places.order import EpochOrder
from rvi_fast.training.runs import journal

N, D, BLOCK = 61, 4, 7
# bytes of checksummed pieces of five rows, three of which lie in two blocks of four
PIECE = 400
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
X[torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
PLACES = ["device", "host", "file"]


@pytest.fixture(autouse=True)
def pieces_that_are_not_blocks(monkeypatch):
    monkeypatch.setattr(checksums, "_PIECE", PIECE)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rvi_fast")]


make = partial(small_model, N, D)


def run(model, **options):
    return short_fit(model, X, **{"block_rows": BLOCK} | options)


# order


@pytest.mark.parametrize("num_data", [1, 6, 61, 64])
@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("batch_size", [1, 8, 30, 100])
def test_an_epoch_visits_every_row_once_in_full_batches(num_data, block_rows, batch_size):
    order = EpochOrder(num_data, block_rows, torch.Generator().manual_seed(0))
    visits = list(order.visits(batch_size))
    assert torch.cat([visit.rows for visit in visits]).sort().values.tolist() == list(
        range(num_data)
    )
    assert all(len(visit.rows) == batch_size for visit in visits[:-1])
    entered = set()
    for rows, window, _ in visits:
        for blocks in order.windows[: window + 1]:
            entered.update(blocks)
        assert set((rows // block_rows).tolist()) <= entered
    if block_rows >= num_data:
        plain = torch.randperm(num_data, generator=torch.Generator().manual_seed(0))
        assert torch.equal(torch.cat([visit.rows for visit in visits]), plain)


def test_a_batch_reaches_no_further_back_than_the_window_before():
    order = EpochOrder(1000, 10, torch.Generator().manual_seed(0))
    for rows, window, _ in order.visits(16):
        near = {
            block for blocks in order.windows[max(window - 1, 0) : window + 1] for block in blocks
        }
        assert set((rows // 10).tolist()) <= near


# the same training


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
@pytest.mark.parametrize("builder", [models.rvi, models.vad])
@pytest.mark.parametrize("eval_every", [0, 1])
def test_the_result_does_not_depend_on_where_the_tables_lie(
    tmp_path, optimizer, builder, eval_every
):
    options = {"optimizer": optimizer, "eval_every": eval_every, "epochs": 6}
    results = []
    for place in PLACES:
        model = make(tmp_path / "tables" if place == "file" else place, builder)
        assert os.path.exists(tmp_path / "tables" / "rows.bin") == (place == "file")
        results.append((model, run(model, **options)))
    for other in results[1:]:
        assert_same(*other, *results[0])
    model = results[-1][0]
    assert torch.equal(impute(model, X), impute(results[0][0], X))
    # what is in the files is what the model holds
    again = make(tmp_path / "tables", builder)
    assert torch.equal(again.posterior.rows, model.posterior.rows)


@pytest.mark.parametrize("block_rows", [BLOCK, 1000])
def test_blocks_change_the_order_and_rounding_and_nothing_else(block_rows):
    """One block is the plain epoch; rows that are flushed once an epoch differ by rounding."""
    model, plain = make().double(), make().double()
    history, expected = run(model, block_rows=block_rows), run(plain, block_rows=None)
    assert (history["loss"] == pytest.approx(expected["loss"], rel=1e-9)) == (block_rows > N)


def test_dense_rows_in_blocks_are_those_of_adam_on_the_whole_table(tmp_path):
    model, x = make(tmp_path), X.nan_to_num()
    run(model, epochs=30, eval_every=0)  # the history has been cut many times
    flushed = make()
    fit(
        flushed, X, epochs=30, batch_size=8, lr=0.02, block_rows=BLOCK, progress=False, eval_every=1
    )
    torch.testing.assert_close(model.posterior.rows, flushed.posterior.rows, rtol=1e-3, atol=1e-4)
    assert x.isfinite().all()


# tables


def test_a_directory_is_opened_as_it_is_and_only_by_its_own_kind(tmp_path):
    posterior = RelayPosterior(20, 3, groups=(4,), storage=tmp_path)
    rows = posterior.rows.detach().clone()
    again = RelayPosterior(20, 3, groups=(4,), storage=tmp_path)
    assert torch.equal(again.rows, rows)
    with torch.no_grad():
        posterior.rows[3] = 7.0
    assert (again.rows[3] == 7).all()  # the same memory
    again.reset_parameters()
    assert not torch.equal(again.rows, rows)
    for arguments in ((21, 3), (20, 4)):
        with pytest.raises(ValueError, match=r"storage: .* holds the tables of another posterior"):
            RelayPosterior(*arguments, groups=(4,), storage=tmp_path)
    with pytest.raises(ValueError, match="another posterior"):
        RelayPosterior(20, 3, groups=(4,), form="mixture", storage=tmp_path)
    os.truncate(tmp_path / "rows.bin", 8)
    with pytest.raises(ValueError, match=r"rows\.bin: has 8 bytes"):
        RelayPosterior(20, 3, groups=(4,), storage=tmp_path)
    (tmp_path / "tables.json").write_text("{")
    with pytest.raises(ValueError, match=r"tables\.json: cannot be read"):
        RelayPosterior(20, 3, groups=(4,), storage=tmp_path)


def test_rows_that_were_not_filled_to_the_end_are_begun_again(tmp_path):
    torch.manual_seed(0)
    expected = RelayPosterior(20, 3, groups=(4,))
    (tmp_path / "rows.bin").write_bytes(b"half")
    torch.manual_seed(0)
    assert torch.equal(RelayPosterior(20, 3, groups=(4,), storage=tmp_path).rows, expected.rows)


def test_a_program_started_again_makes_the_same_model(tmp_path):
    make(tmp_path)
    assert_same(make(tmp_path), None, make(), None)
    torch.manual_seed(1)
    other = models.rvi(N, D, latent_dim=3, hidden=(5,), groups=(3, 5), storage=tmp_path)
    assert torch.equal(other.posterior.rows, make().posterior.rows)
    assert not torch.equal(other.posterior.relays, make().posterior.relays)


def test_copies_lie_in_memory_and_moves_are_refused(tmp_path):
    posterior = RelayPosterior(20, 3, groups=(4,), storage=tmp_path)
    optimizer = RowAdam(posterior, lr=0.1)
    posterior(torch.arange(5)).kl.sum().backward()
    optimizer.step()
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert torch.equal(other.rows, posterior.rows)
        with torch.no_grad():
            other.rows.zero_()
        other.double()
    assert posterior.rows.any()
    assert posterior.to("cpu").float().rows.any()
    for move in (posterior.double, posterior.half, lambda: posterior.to("meta")):
        with pytest.raises(ValueError, match=r"storage: the rows stay torch\.float32 on cpu"):
            move()
    assert posterior.rows.dtype == torch.float32
    with pytest.raises(ValueError, match="storage: expected 'device' for a posterior on meta"):
        RelayPosterior(20, 3, storage=tmp_path, device="meta")


def test_a_new_optimizer_starts_from_zero_and_the_one_before_keeps_its_own(tmp_path):
    posterior = RelayPosterior(20, 3, groups=(4,), storage=tmp_path, sparse=True)
    before = RowAdam(posterior, lr=0.1)
    posterior(torch.arange(5)).kl.sum().backward()
    before.step()
    after = RowAdam(posterior, lr=0.1)
    assert before.raw_tables()["exp_avg"].any()
    assert not after.raw_tables()["exp_avg"].any()


@pytest.mark.parametrize("device", ["device", "host"])
def test_what_cannot_fit_in_memory_is_refused_before_it_is_made(monkeypatch, device):
    monkeypatch.setattr(room, "free_memory", lambda _: 9_999)
    with pytest.raises(MemoryError, match=r"posterior\.rows: needs 11200 bytes .* lower num_data"):
        RelayPosterior(100, 12, groups=(4,), storage=device)
    posterior = RelayPosterior(20, 12, groups=(4,), storage=device)
    monkeypatch.setattr(room, "free_memory", lambda _: 999)
    with pytest.raises(ValueError, match=r"moments of posterior\.rows: needs 4560 bytes"):
        RowAdam(posterior)


def test_what_cannot_fit_on_the_disk_is_refused_before_it_is_made(tmp_path, monkeypatch):
    with pytest.raises(InsufficientMemory, match=r"rows\.bin needs .* its disk has"):
        RelayPosterior(10**12, 12, storage=tmp_path)
    assert not list(tmp_path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InsufficientMemory, match=r"rows\.bin .* No space left"):
        RelayPosterior(20, 3, storage=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_released_rows_leave_memory_and_keep_their_values(tmp_path):
    posterior = RelayPosterior(20_000, 64, groups=(100,), storage=tmp_path)

    def resident():
        size, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                inside = line.endswith(str(tmp_path / "rows.bin"))
            elif inside and line.startswith("Rss:"):
                size += int(line.split()[1]) * 1024
        return size

    with torch.no_grad():
        posterior.rows.fill_(3.0)
    assert resident() > 0.9 * posterior.rows.nbytes
    posterior.tables.release(0, 20_000)
    assert resident() < 0.1 * posterior.rows.nbytes
    posterior.tables.prefetch(5_000, 15_000)
    assert 0.4 * posterior.rows.nbytes < resident() < 0.6 * posterior.rows.nbytes
    assert (posterior.rows == 3).all()
    posterior.tables.sync()


def test_pages_leave_the_map_before_they_are_written(tmp_path, monkeypatch):
    """Steps take longer beside writes of what is still mapped."""
    posterior, done, call = RelayPosterior(20, 3, groups=(4,), storage=tmp_path), [], pages.call

    def told(name, address, length, option):
        done.append(option)
        return call(name, address, length, option)

    monkeypatch.setattr(pages, "call", told)
    monkeypatch.setattr(pages, "start_writing", lambda path, *_: done.append(path.name))
    posterior.tables.release(0, 20)
    assert done == [pages.DONTNEED, "rows.bin"]


# checkpoints


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._dynamo", "tqdm", "safetensors.torch"])


def in_child(started, place, run_dir, epochs, options):
    checksums._PIECE = PIECE
    model = make(place)
    started.set()
    run(model, epochs=epochs, run_dir=run_dir, resume=True, **options)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_back_to_its_checkpoint_and_ends_as_if_never_killed(tmp_path, seed):
    options = {"eval_every": seed, "batch_size": 3}
    expected, epochs = make(), 40
    expected_history = run(expected, epochs=epochs, **options)
    chance = random.Random(seed)
    place, run_dir = tmp_path / "tables", tmp_path / "run"

    def start():
        started = PROCESSES.Event()
        given = options | {"checkpoint_every": chance.choice([0, 0.05, 30])}
        arguments = (started, place, run_dir, epochs, given)
        process = PROCESSES.Process(target=in_child, args=arguments, daemon=True)
        process.start()
        assert started.wait(60)
        return process

    killed_until_it_ends(start, chance, least=0.0)
    model = make(place)
    assert_same(model, None, make(place), None)
    assert run(model, epochs=epochs, run_dir=run_dir, resume=True, **options) == expected_history
    assert_same(model, None, expected, None)
    assert_same(rvi_fast.load(run_dir), None, expected, None)


@pytest.mark.parametrize("place", PLACES)
def test_more_epochs_go_on_and_a_loaded_model_is_the_trained_one(tmp_path, place):
    where = tmp_path / "tables" if place == "file" else place
    expected, half, model = make(), make(), make(where)
    expected_history = run(expected, epochs=6)
    run(half, epochs=3)
    run(model, epochs=3, run_dir=tmp_path / "run")
    assert_same(rvi_fast.load(tmp_path / "run"), None, half, None)
    model = make(where)
    history = run(model, epochs=6, run_dir=tmp_path / "run", resume=True)
    assert_same(model, history, expected, expected_history)
    with pytest.raises(ValueError, match="block_rows: expected 7"):
        run(model, epochs=7, run_dir=tmp_path / "run", resume=True, block_rows=8)


def test_a_model_broken_off_by_an_exception_is_taken_back(tmp_path):
    def stop(_, history):
        return 1 / (history.epochs != 3) < 0

    expected, model = make(), make(tmp_path / "tables")
    with pytest.raises(ZeroDivisionError):
        run(model, run_dir=tmp_path / "run", callbacks=[stop], checkpoint_every=1000)
    history = run(model, run_dir=tmp_path / "run", resume=True)
    assert_same(model, history, expected, run(expected))


def test_tables_are_on_disk_before_the_file_that_vouches_for_them(tmp_path, monkeypatch):
    events, call, write = [], pages.call, storage.write_bytes
    save = ranks.save_checkpoint

    def look(name, *arguments):
        events.extend([name] * (name == "msync"))
        return call(name, *arguments)

    monkeypatch.setattr(pages, "call", look)
    monkeypatch.setattr(storage, "write_bytes", lambda *a: (events.append("json"), write(*a)))
    monkeypatch.setattr(ranks, "save_checkpoint", lambda *a: (events.append("save"), save(*a))[1])
    model = make(tmp_path / "tables")
    assert events == ["msync", "json"]
    events.clear()
    run(model, epochs=2, run_dir=tmp_path / "run", checkpoint_every=0)
    # rows, two moments and steps, before the first epoch and after each
    assert events == [*["msync"] * 4, "save"] * 3


@pytest.mark.parametrize("call", [0, 1, 5, 30])
def test_a_full_disk_under_the_journal_is_an_error_and_the_run_goes_on_later(
    tmp_path, monkeypatch, call
):
    expected, model, calls = make(), make(tmp_path / "tables"), []
    replacing = journal.replacing

    def full(path, **options):
        calls.append(path)
        if len(calls) > call:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return replacing(path, **options)

    monkeypatch.setattr(journal, "replacing", full)
    with pytest.raises(OSError, match=r"No space left .*undo-"):
        run(model, run_dir=tmp_path / "run", checkpoint_every=0)
    assert model.posterior._row_optimizer is None
    monkeypatch.undo()
    model = make(tmp_path / "tables")
    history = run(model, run_dir=tmp_path / "run", resume=True)
    assert_same(model, history, expected, run(expected))


def test_an_error_of_the_thread_that_moves_blocks_ends_the_run(tmp_path, monkeypatch):
    model, calls = make(tmp_path), []

    def fail(*_):
        calls.append(1 / (len(calls) != 6))

    for name in ("prefetch", "release"):
        calls.clear()
        with monkeypatch.context() as patched:
            patched.setattr(storage.MappedTables, name, fail)
            with pytest.raises(ZeroDivisionError):
                run(model, eval_every=0)
    assert run(model).epochs == 4


def test_rows_that_become_infinite_are_noticed_as_their_block_is_put_away(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss became|posterior\.rows became"):
        run(make(tmp_path), lr=1e30, posterior_lr=1e30)
    model = make(tmp_path / "other")
    with torch.no_grad():
        model.posterior.rows[-1, 3] = torch.inf  # between two parts, where no loss looks
    with pytest.raises(FloatingPointError, match=r"posterior\.rows became nan or inf in epoch 1"):
        run(model)


def test_tables_that_something_else_has_trained_are_not_resumed(tmp_path):
    run(make(tmp_path / "tables"), run_dir=tmp_path / "run")
    run(make(tmp_path / "tables"), epochs=1)
    for begin in (
        lambda: run(make(tmp_path / "tables"), run_dir=tmp_path / "run", epochs=5, resume=True),
        lambda: rvi_fast.load(tmp_path / "run"),
    ):
        with pytest.raises(CheckpointError, match=r"the tables in .* have been changed since"):
            begin()


def test_a_journal_that_is_damaged_or_gone_is_named(tmp_path):
    run(make(tmp_path / "tables"), run_dir=tmp_path / "run")
    block = next(tmp_path.glob("tables/undo-*/*.bin"))
    block.write_bytes(block.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"\.bin: has .* bytes, not those of a block"):
        rvi_fast.load(tmp_path / "run")
    moved = (tmp_path / "tables").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"has its tables in .* which holds none"):
        rvi_fast.load(tmp_path / "run")
    assert json.loads((moved / "tables.json").read_text())["num_data"] == N


def test_a_fresh_run_does_not_touch_the_tables_of_one_that_can_be_resumed(tmp_path):
    model = make(tmp_path / "tables")
    run(model, run_dir=tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.bin")}
    with pytest.raises(ValueError, match="holds a run of 4 epochs"):
        run(make(tmp_path / "tables"), run_dir=tmp_path / "run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.bin")} == before


def test_two_runs_do_not_share_tables(tmp_path):
    model, refused = make(tmp_path / "tables"), []

    def second(*_):
        with pytest.raises(RunDirectoryInUse, match="tables is in use"):
            run(make(tmp_path / "tables"))
        refused.append(True)

    run(model, epochs=1, callbacks=[second])
    assert refused
    run(model, epochs=1, run_dir=tmp_path / "tables")  # one directory may serve for both
