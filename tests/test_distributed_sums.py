"""Sums over processes of one machine: in shared memory, the right ones, and nobody waits for ever."""

import os
import re
import tempfile
import time
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from distributed_worker import alone, assert_close, together

from rvi_fast.training import distributed
from rvi_fast.training.distributed import sums as sums_module
from rvi_fast.training.distributed.sums import SharedMemory, Sums, sums_over


def vectors(size, dtype, count=5, numbers=33):
    """Of each process one for each sum; large and small numbers, whose sum depends on the order."""
    generator = torch.Generator().manual_seed(2)
    scale = 10.0 ** torch.randint(-4, 5, (count, size, numbers), generator=generator)
    return (torch.randn(count, size, numbers, generator=generator) * scale).to(dtype)


def summing(rank, size, *, dtype, late=None):
    """Sums of a few vectors; one process comes to each of them later than the others."""
    parts = vectors(size, dtype)
    sums, found = sums_over(parts[0, rank]), []
    for values in parts[:, rank].clone():
        wait = sums.begin(values)
        if rank == late:
            time.sleep(0.05)  # the others have put the next vector there
        wait()
        found.append(values)
    sums.close()
    return type(sums), torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_have_the_sum_in_the_order_of_the_processes(tmp_path, size, dtype):
    parts = vectors(size, dtype)
    expected = parts[:, 0].clone()
    for rank in range(1, size):
        expected += parts[:, rank]
    for late in (None, size - 1):
        for kind, found in worker.run(size, summing, tmp_path / f"{late}", dtype=dtype, late=late):
            assert kind is SharedMemory
            assert torch.equal(found, expected)


def refused(*_, **__):
    raise OSError("not here")


def without_a_folder():
    sums_module.tempfile.TemporaryDirectory = refused


def without_a_door():
    del sums_module.socket.AF_UNIX


def without_a_way():
    sums_module.socket.socket.connect = refused


def elsewhere(rank, size, *, fault, does, **keywords):
    """`does` where the last process is not with the others, or as good as that."""
    if rank == size - 1:
        fault()
    return does(rank, size, **keywords)


FAULTS = [without_a_folder, without_a_door, without_a_way]


@pytest.mark.parametrize("fault", FAULTS)
def test_processes_that_do_not_reach_each_other_sum_by_gloo(tmp_path, fault):
    parts = vectors(3, torch.float64)
    keywords = {"fault": fault, "does": summing, "dtype": torch.float64}
    for kind, found in worker.run(3, elsewhere, tmp_path, **keywords):
        assert kind is Sums
        torch.testing.assert_close(found, parts.sum(1), rtol=1e-12, atol=1e-9)


def test_with_gloo_they_train_the_same_to_rounding(tmp_path):
    keywords = {"fault": without_a_way, "does": worker.train}
    assert_close(together(worker.run(3, elsewhere, tmp_path, **keywords)), alone())


def what_is_left(rank, size):
    """Files, connections and memory that a process has open after a run."""
    worker.train(rank, size)
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    listed = Path("/proc/net/unix").read_text() + Path("/proc/self/maps").read_text()
    return [
        line for line in (*opened, *listed.splitlines()) if "rvi_fast." in line or "memfd" in line
    ]


def test_nothing_is_left_behind(tmp_path):
    folders = set(Path(tempfile.gettempdir()).glob("rvi_fast.*"))
    assert worker.run(2, what_is_left, tmp_path) == [[], []]
    assert set(Path(tempfile.gettempdir()).glob("rvi_fast.*")) <= folders


def losing(rank, size, *, how, found):
    """The last process does not come to the third sum; what the others make of it, and when."""
    values = torch.ones(7)
    sums = sums_over(values)
    for _ in range(2):
        sums.begin(values)()
    if rank == size - 1:
        if how == "killed":
            os.kill(os.getpid(), 9)
        if how == "ended":
            sums.close()
        time.sleep(6)
        return
    start = time.monotonic()
    with pytest.raises(distributed.RankError, match=f"process {size - 1}: ") as caught:
        sums.begin(values)()
    # not by what is returned, for which all would be waited for
    (found / f"{rank}.found").write_text(f"{time.monotonic() - start} {caught.value}")


@pytest.mark.parametrize(
    ("how", "words"),
    [("killed", ""), ("ended", "ended|Broken pipe|reset"), ("late", "timed out")],
)
def test_a_lost_process_is_an_error_in_all_others(tmp_path, how, words):
    timeout = 3.0 if how == "late" else 20.0
    keywords = {"how": how, "found": tmp_path, "timeout": timeout}
    for process in worker.start(3, losing, tmp_path / "runs", **keywords):
        process.join(60)
    for rank in range(2):
        seconds, said = (tmp_path / f"{rank}.found").read_text().split(maxsplit=1)
        assert float(seconds) < (0.5 if how != "late" else timeout + 1.0)
        assert said.startswith(f"process {rank} has lost another one")
        assert re.search(words, said)
