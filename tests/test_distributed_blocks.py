"""Shards whose rows come and go in blocks, in memory and in files, in any number of processes."""

import os
import shutil
import signal

import distributed_worker as worker
import pytest
import torch
from distributed_worker import TOLERANCE, alone, assert_close, assert_equal, together

import rvi_fast
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors import tables
from rvi_fast.training import distributed
from rvi_fast.training.distributed.ranks import Alone
from rvi_fast.training.loop import tally
from rvi_fast.training.places.order import EpochOrder
from rvi_fast.training.runs import parts, sharded
from rvi_fast.training.runs.checkpoints import latest_epoch
from rvi_fast.training.runs.journal import Journal

BLOCK = 4


# the order


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("block_rows", [1, 4, 7, 100])
@pytest.mark.parametrize("num_data", [5, 37, 61])
def test_windows_of_a_run_of_several_processes_share_out_the_blocks(num_data, block_rows, parts):
    order = EpochOrder(num_data, block_rows, torch.Generator().manual_seed(0), parts)
    visits = list(order.visits(8))
    visited = torch.cat([visit.rows for visit in visits])
    assert visited.sort().values.tolist() == list(range(num_data))
    entered = set()
    for rows, window, _ in visits:
        for before in range(window + 1):
            for first, end in order.ranges(before):
                entered.update(range(first, end))
        assert entered.issuperset(rows.tolist())
    shards = [distributed.rows_of_rank(num_data, rank=r, size=parts) for r in range(parts)]
    for window in range(len(order.windows) - 1):
        # none but the last window is without a share of each process
        ranges = order.ranges(window)
        for shard in shards:
            own = [ends for ends in ranges if ends[0] in shard and ends[1] - 1 in shard]
            assert len(own) == 4
        assert len(ranges) == 4 * parts


# the same training


@pytest.fixture
def of_parts(monkeypatch):
    """A single process takes the order that so many have begun."""
    return lambda parts: monkeypatch.setattr(Alone, "size", parts)


@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [(1, torch.float32, 0.0), (2, torch.float32, TOLERANCE), (3, torch.float64, 1e-11)],
)
def test_processes_with_blocks_train_what_one_trains(tmp_path, of_parts, size, dtype, tolerance):
    changes = {"dtype": dtype, "block_rows": BLOCK, "epochs": 3}
    got = together(worker.run(size, worker.train, tmp_path, **changes))
    of_parts(size)
    assert_close(got, alone(**changes), tolerance)


def test_it_does_not_matter_where_the_rows_of_a_process_lie(tmp_path):
    changes = {"block_rows": BLOCK, "moment_dtype": torch.bfloat16}
    expected = together(worker.run(2, worker.train, tmp_path / "device", **changes))
    for name, storage in (("host", "host"), ("files", tmp_path / "tables")):
        got = worker.run(2, worker.train, tmp_path / name, storage=storage, **changes)
        assert_equal(together(got), expected)
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {"rows-0-19", "rows-19-37"}


def staged(rank, size, **changes):
    """Training as if the CPU were a GPU, with the rows in host memory or in files."""
    tables.HostTables.staged = lambda self, device: True
    return worker.train(rank, size, **changes)


def test_shards_pass_through_a_gpu_in_blocks(tmp_path):
    """Of a run that three have begun, so that the shards of two begin and end within blocks."""

    def run(size, epochs, train, storage, folder):
        changes = {"block_rows": BLOCK, "moment_dtype": torch.bfloat16, "resume": True}
        changes |= {"epochs": epochs, "storage": storage, "run_dir": tmp_path / folder / "run"}
        return worker.run(size, train, tmp_path / folder / str(epochs), **changes)

    for epochs, size in ((1, 3), (3, 2)):
        got = run(size, epochs, staged, tmp_path / "tables", "staged")
        expected = run(size, epochs, worker.train, "device", "device")
    assert_equal(together(got), together(expected))


# checkpoints


def trained(size, folder, run_dir, place, **changes):
    """The state after training that goes on from whatever lies in the run directory."""
    return worker.trained(size, folder, run_dir, storage=str(place), block_rows=BLOCK, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four epochs of two processes, with nothing between."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(2, folder / "processes", folder / "run", folder / "tables", epochs=4)


def test_any_number_of_processes_goes_on_with_the_files(tmp_path, whole):
    """The order stays that of the two processes that have begun the run."""
    at, place = tmp_path / "run", tmp_path / "tables"
    for epochs, size in enumerate((2, 3, 1, 2), start=1):
        got = trained(size, tmp_path / str(epochs), at, place, epochs=epochs)
        shards = [distributed.rows_of_rank(worker.N, rank=r, size=size) for r in range(size)]
        held = {path.name for path in place.iterdir()}
        assert held == {f"rows-{shard.start}-{shard.stop}" for shard in shards}
        model = rvi_fast.load(at)
        for name, value in model.state_dict().items():
            if name != "posterior.rows":
                assert torch.equal(value, got[name]), name
        torch.testing.assert_close(model.posterior.rows, got["posterior.rows"], rtol=0, atol=1e-7)
    assert_close(got, whole)


def test_one_process_without_shards_goes_on_with_the_files_and_hands_them_back(tmp_path, whole):
    at, place = tmp_path / "run", tmp_path / "tables"
    trained(2, tmp_path / "1", at, place, epochs=1)
    options = worker.options(epochs=2, block_rows=BLOCK, run_dir=at, resume=True)
    model = worker.built(storage=place)
    rvi_fast.fit(model, worker.table(), **options)
    assert not list(place.glob("rows-*"))
    got = trained(2, tmp_path / "4", at, place, epochs=4)
    assert not list(place.glob("*.bin"))
    assert_close(got, whole)


# a process that is asked to end


def asked_to_end(rank, size, *, asked=None, **changes):
    """Training in which one process gets a signal in the midst of an epoch."""
    tally.CHECK_EVERY = 4
    steps, step_batch = [], RowAdam.step_batch

    def counted(self, *arguments):
        steps.append(rank)
        if rank == asked and len(steps) == 18:
            os.kill(os.getpid(), signal.SIGTERM)
        step_batch(self, *arguments)

    RowAdam.step_batch = counted
    try:
        return worker.train(rank, size, make_model=worker.built, resume=True, **changes)
    except KeyboardInterrupt as error:
        return str(error)


@pytest.mark.parametrize(("storage", "size", "asked"), [("device", 2, 1), ("files", 3, 0)])
def test_a_signal_to_one_process_saves_in_all(tmp_path, storage, size, asked):
    """The epoch is ended by as many processes, bit for bit, or by others; files in the background."""

    def run(size, folder, **changes):
        place = tmp_path / folder / "tables" if storage == "files" else storage
        changes |= {"run_dir": tmp_path / folder / "run", "storage": place, "epochs": 3}
        changes |= {"block_rows": BLOCK, "checkpoint_async": storage == "files"}
        changes["checkpoint_every"] = 0.0
        number = len([*(tmp_path / folder).glob("*")])
        return worker.run(size, asked_to_end, tmp_path / folder / str(number), **changes)

    for said in run(2, "halved", asked=asked):
        assert "stopped by SIGTERM in epoch 2 of 3, after 8 of 13 steps; resume=True" in said
    compare = assert_equal if size == 2 else assert_close
    compare(together(run(size, "halved")), together(run(2, "whole")))


# a process that is killed

# before the call of these that ends the process
DEATHS = {
    "as it keeps a block": (Journal, "keep", 12),
    "in the fifth epoch": (Journal, "keep", 23),
    "before its journal begins": (Journal, "begin", 3),
    "before the journal of rows of others begins": (Journal, "begin", 2),
    "before a checkpoint has its name": (sharded, "publish_checkpoint", 3),
    "as it reads rows of others": (parts, "read_block", 1),
}


def dying(rank, size, *, victim, where, **changes):
    """Training in which one process kills itself."""
    holder, name, calls = DEATHS[where]
    called, left = getattr(holder, name), [calls]

    def counted(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*arguments, **keywords)

    if rank == victim:
        setattr(holder, name, counted)
    return worker.train(rank, size, make_model=worker.built, checkpoint_every=0.0, **changes)


def killed(size, folder, run_dir, place, **changes):
    """Processes of which one dies; the others must end too."""
    places = {"run_dir": str(run_dir), "storage": str(place)}
    processes = worker.start(
        size, dying, folder, timeout=10.0, block_rows=BLOCK, resume=True, **places, **changes
    )
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes].count(-signal.SIGKILL) == 1


@pytest.mark.parametrize(
    ("where", "victim"),
    [
        ("as it keeps a block", 1),
        ("before its journal begins", 1),
        ("before a checkpoint has its name", 0),
    ],
)
def test_after_a_kill_the_run_goes_on_bit_for_bit(tmp_path, whole, where, victim):
    at = tmp_path / "run", tmp_path / "tables"
    killed(2, tmp_path / "killed", *at, victim=victim, where=where, epochs=4)
    assert_equal(trained(2, tmp_path / "again", *at, epochs=4), whole)


def test_after_a_kill_others_go_on_though_they_are_killed_on_the_way(tmp_path, whole):
    at = tmp_path / "run", tmp_path / "tables"
    killed(2, tmp_path / "a", *at, victim=1, where="as it keeps a block", epochs=4)
    killed(3, tmp_path / "b", *at, victim=1, where="as it reads rows of others", epochs=4)
    where = "before the journal of rows of others begins"
    killed(3, tmp_path / "c", *at, victim=1, where=where, epochs=4)
    got = trained(3, tmp_path / "d", *at, epochs=4)
    assert {path.name for path in at[1].iterdir()} == {"rows-0-13", "rows-13-25", "rows-25-37"}
    assert_close(got, whole)


# files that are not as they were


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two processes after an epoch, with tables in files that nothing has changed since."""
    folder = tmp_path_factory.mktemp("begun")
    changes = {"epochs": 1, "optimizer": "lazy"}
    trained(2, folder / "processes", folder / "run", folder / "tables", **changes)
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget(path):
    for journal in path.parent.glob("undo-*"):
        shutil.rmtree(journal)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (flip, "exp_avg.bin", r"exp_avg\.bin: rows 0 to 18 do not match their checksum"),
        (os.remove, "row_step.bin", r"row_step\.bin: cannot be read"),
        (
            lambda path: os.truncate(path, 8),
            "rows.bin",
            r"rows\.bin: has 8 bytes, expected 19 rows",
        ),
        (forget, "rows.bin", r"the tables in .*rows-0-19 have been changed since"),
    ],
)
def test_others_do_not_go_on_with_files_that_are_not_as_they_were(
    tmp_path, begun, change, name, words
):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    place, changes = tmp_path / "tables", {"optimizer": "lazy", "resume": True}
    options = worker.options(epochs=2, block_rows=BLOCK, **changes)
    change(place / "rows-0-19" / name)
    with pytest.raises(rvi_fast.training.CheckpointError, match=words):
        rvi_fast.fit(
            worker.built(storage=place), worker.table(), run_dir=tmp_path / "run", **options
        )
    # they are mended, and the run goes on
    shutil.rmtree(place / "rows-0-19")
    shutil.copytree(begun / "tables" / "rows-0-19", place / "rows-0-19")
    model = worker.built(storage=place)
    history = rvi_fast.fit(model, worker.table(), run_dir=tmp_path / "run", **options)
    assert history.epochs == 2
    assert not list(place.glob("rows-*"))


def test_rows_are_loaded_as_a_checkpoint_has_them_though_the_files_have_gone_on(tmp_path, whole):
    places = tmp_path / "run", tmp_path / "tables"
    killed(2, tmp_path / "killed", *places, victim=0, where="in the fifth epoch", epochs=9)
    assert latest_epoch(places[0]) == 4
    rows = rvi_fast.load(places[0]).posterior.rows
    torch.testing.assert_close(rows, whole["posterior.rows"], rtol=0, atol=1e-7)
