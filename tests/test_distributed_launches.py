"""Several processes whose steps are six launches and a sum: what one process trains, captured or not.

The launches are plain torch here, graphs and streams stand-ins, and processes exchange by gloo.
"""

import threading
import warnings
from datetime import timedelta
from types import SimpleNamespace

import distributed_worker as worker
import numpy as np
import pytest
import torch
from distributed_worker import TOLERANCE, alone, assert_close, assert_equal, built, together
from launches import Graph, capturable, capture_functions, stand_in_for_cuda, taken_down

from rvi_fast.posteriors import tables
from rvi_fast.reference import fused_step as six
from rvi_fast.training import distributed
from rvi_fast.training.distributed import launch, ranks
from rvi_fast.training.inputs.feed import Visit
from rvi_fast.training.loop import fused_step
from rvi_fast.training.loop.capture import CapturedStep


def launched(rank, size, *, captured=False, x=None, staged=False, **changes):
    """Trains in launches; the state, how many rows each was for, and graphs that were captured."""
    sizes, keys, made = [], set(), ranks.sums_over

    class Watched(fused_step.FusedStep):
        def launch(self, index, full_size):
            sizes.append(len(index))
            keys.add(self.size_of(index))
            return super().launch(index, full_size)

    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_cuda(patch, capture_functions)
        patch.setattr(fused_step, "FusedStep", Watched)
        patch.setattr(fused_step, "launches_on", lambda _: capturable(six))

        def sums_over(like):
            """Within a graph a sum is a part of it."""
            sums = made(like)
            begin, sums.begin = sums.begin, lambda values: lambda: summed(values)
            summed = taken_down(lambda values: begin(values)())
            return sums

        patch.setattr(ranks, "sums_over", sums_over)
        if staged:
            patch.setattr(tables.HostTables, "staged", lambda self, device: True)
        if not captured:
            patch.setattr(CapturedStep, "_capture", lambda self, *_: None)
            changes["capture"] = False
        x = x if x is None else np.load(x, mmap_mode="r")
        state = worker.train(rank, size, make_model=built, x=x, **changes)
        return state, sizes, len(Graph.made), len(keys)


def states(found):
    return together([state for state, *_ in found])


@pytest.mark.parametrize(("size", "batch_size"), [(1, 20), (2, 3), (4, 3), (4, 20)])
def test_launches_of_processes_train_what_one_trains(tmp_path, size, batch_size):
    found = worker.run(size, launched, tmp_path, batch_size=batch_size, epochs=4)
    assert_close(states(found), alone(epochs=4, batch_size=batch_size, make=built), TOLERANCE)
    # all made room for as many rows in each step
    assert all(sizes == found[0][1] for _, sizes, *_ in found)
    assert len(found[0][1]) == 4 * -(-worker.N // batch_size)


@pytest.mark.parametrize(("size", "staged"), [(1, False), (3, False), (2, True), (3, True)])
def test_captured_with_their_sums_they_are_the_same_bit_for_bit(tmp_path, size, staged):
    changes = {"batch_size": 20, "epochs": 4, "moment_dtype": torch.bfloat16}
    if staged:
        changes |= {"staged": True, "storage": "host", "block_rows": 8}
    expected = worker.run(size, launched, tmp_path / "runs", **changes)
    got = worker.run(size, launched, tmp_path / "captured", captured=True, **changes)
    assert_equal(states(got), states(expected))
    for _, sizes, graphs, kinds in got:
        # each size once as it is and once within a graph, which all else is replayed from
        assert len(sizes) == 2 * graphs == 2 * kinds < len(expected[0][1])


@pytest.mark.parametrize("captured", [False, True])
def test_data_that_the_host_reads_are_those_in_memory(tmp_path, captured):
    np.save(tmp_path / "x.npy", worker.table().numpy())
    changes = {"batch_size": 20, "epochs": 4, "captured": captured}
    expected = worker.run(2, launched, tmp_path / "memory", **changes)
    got = worker.run(2, launched, tmp_path / "host", x=tmp_path / "x.npy", **changes)
    assert_equal(states(got), states(expected))


@pytest.mark.parametrize(
    ("share", "mean", "room"),
    [
        (0, 1.0, 32),
        (1, 128.0, 32),
        (128, 128.0, 128),
        (129, 128.0, 160),
        (8193, 8192.0, 8704),
        (8704, 8192.0, 8704),
    ],
)
def test_there_is_room_for_a_few_sizes(share, mean, room):
    assert ranks.room_for(share, mean) == room


def test_rows_are_shared_out_with_room_for_the_largest_share():
    order = torch.randperm(6500, generator=torch.Generator().manual_seed(0))
    batches = [*order[:6400].split(640), order[6400:]]
    shards = [distributed.rows_of_rank(6500, rank=rank, size=3) for rank in range(3)]
    found = []
    for rank, rows in enumerate(shards):
        own = object.__new__(ranks.Ranks)
        own.rows, own.rank, own.size = rows, rank, 3
        own._ends = torch.tensor([shard.stop for shard in shards])
        found.append([*own.visits(iter([Visit(batch, 7) for batch in batches]))])
    for number, batch in enumerate(batches):
        visits = [visits[number] for visits in found]
        for rows, visit in zip(shards, visits, strict=True):
            inside = (batch >= rows.start) & (batch < rows.stop)
            assert torch.equal(visit.rows, batch[inside] - rows.start)
            assert visit.window == 7
        largest = max(len(visit.rows) for visit in visits)
        assert {visit.room for visit in visits} == {ranks.room_for(largest, 640 / 3)}
    # which no process could say by its own share
    rooms = [[ranks.room_for(len(visit.rows), 640 / 3) for visit in visits] for visits in found]
    assert rooms[0] != rooms[1] != rooms[2]


def test_a_gpu_that_does_not_finish_in_time_has_lost_a_process(monkeypatch):
    """Of a GPU that is not there: its event is never reached, and its exchanges are ended."""
    ended, event = threading.Event(), SimpleNamespace(query=lambda: False)
    backend = SimpleNamespace(abort=ended.set)
    group = SimpleNamespace(_get_backend=lambda device: backend if device.type == "cuda" else None)
    stream = SimpleNamespace(record_event=lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(launch, "_timeout", timedelta(seconds=0.2))
    monkeypatch.setattr(launch, "_thread", threading.get_ident())
    monkeypatch.setattr(launch, "joined", lambda: True)
    monkeypatch.setattr(launch.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(launch.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(launch.dist, "group", SimpleNamespace(WORLD=group))
    device = torch.device("cuda", 0)
    with pytest.raises(
        distributed.RankError, match=r"process 3 has lost .*: cuda:0 has not finished in 0.2"
    ):
        launch.done_in_time(device)
    assert ended.wait(10)
    ended.clear()
    # whoever waits for others beside the training does not end its exchanges
    monkeypatch.setattr(launch, "_thread", -1)
    with pytest.raises(distributed.RankError):
        launch.done_in_time(device)
    event.query = lambda: True
    launch.done_in_time(device)
    launch.done_in_time(torch.device("cpu"))
    assert not ended.wait(0.2)


def parting(rank, size, *, how):
    """Trains as `launched` where the processes differ in whether steps can be captured."""
    changes, capture = {"batch_size": 20, "epochs": 4, "captured": True}, CapturedStep._capture
    if how == "capture" and rank == 1:
        changes["capture"] = False
    if how == "the graph of one" and rank == 1:

        def refused(self, index, full_size):
            own = self.step.launch

            def launch(*arguments):
                own(*arguments)
                raise RuntimeError("no room")

            self.step.launch = launch
            try:
                return capture(self, index, full_size)
            finally:
                del self.step.launch

        CapturedStep._capture = refused
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state, *_ = launched(rank, size, **changes)
    return state, [str(w.message) for w in said if "not captured" in str(w.message)]


@pytest.mark.parametrize("how", ["capture", "the graph of one"])
def test_processes_capture_their_steps_all_or_none(tmp_path, how):
    expected = worker.run(2, launched, tmp_path / "plain", batch_size=20, epochs=4)
    got = worker.run(2, parting, tmp_path / "parting", how=how)
    assert_equal(states(got), states(expected))
    if how == "the graph of one":
        reasons = [said[0].rpartition(": ")[2] for _, said in got]
        assert reasons == ["another process cannot capture them", "no room"]
