"""Several processes train what one trains, and end together when one of them fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed_worker import TOLERANCE, alone, assert_close, assert_equal, together

import rvi_fast
from rvi_fast import cli
from rvi_fast.posteriors import rows as posterior_module
from rvi_fast.training import callbacks, distributed, export
from rvi_fast.training.distributed.sums import SharedMemory
from rvi_fast.training.runs.metrics import read_metrics

ROOT = Path(__file__).parent.parent

# which rows


@pytest.mark.parametrize(("num_data", "size"), [(1, 1), (4, 4), (10, 4), (37, 5), (1000, 7)])
def test_every_row_has_one_owner(num_data, size):
    shards = [distributed.rows_of_rank(num_data, rank=rank, size=size) for rank in range(size)]
    assert [row for shard in shards for row in shard] == list(range(num_data))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"num_data: expected a row for each of 4 .* got 3"):
        distributed.rows_of_rank(3, rank=0, size=4)
    with pytest.raises(ValueError, match=r"rank, size: expected numbers before init"):
        distributed.rows_of_rank(3)


@pytest.mark.parametrize("drawn", [1, 5, 37, 65536])
@pytest.mark.parametrize("groups", [(), (3, 5), (16,)])
def test_what_a_row_starts_with_does_not_depend_on_the_shards(monkeypatch, drawn, groups):
    monkeypatch.setattr(posterior_module, "_DRAWN", drawn)

    def make(shard=None):
        torch.manual_seed(1)
        posterior = rvi_fast.RelayPosterior(37, 4, groups=groups, shard=shard)
        return posterior, torch.rand(3)

    whole, after = make()
    for size in (1, 2, 4, 37):
        shards = [make(distributed.rows_of_rank(37, rank=r, size=size)) for r in range(size)]
        assert torch.equal(torch.cat([posterior.rows for posterior, _ in shards]), whole.rows)
        for posterior, drawn_next in shards:
            assert torch.equal(posterior.relays, whole.relays)
            assert torch.equal(drawn_next, after)


@pytest.mark.parametrize(
    ("shard", "error", "words"),
    [
        ((0, 5), TypeError, "shard: expected a range of rows, got tuple"),
        (range(5, 5), ValueError, r"shard: expected .* range\(5, 5\)"),
        (range(11), ValueError, "shard: expected rows between 0 and 10"),
        (range(0, 10, 2), ValueError, "shard: expected"),
    ],
)
def test_what_is_no_shard_is_refused(shard, error, words):
    with pytest.raises(error, match=words):
        rvi_fast.RelayPosterior(10, 2, groups=(), shard=shard)


# the same training


@pytest.mark.parametrize(
    ("size", "kind", "dtype", "tolerance"),
    [
        (1, "rvi", torch.float32, 0.0),
        (2, "rvi", torch.float32, TOLERANCE),
        (4, "rvi", torch.float32, TOLERANCE),
        (4, "vad", torch.float64, 1e-11),
        (4, "autograd", torch.float64, 1e-11),
    ],
)
def test_processes_train_what_one_trains(tmp_path, size, kind, dtype, tolerance):
    # 13 steps an epoch, of three rows each: most of four processes have none of them
    got = together(worker.run(size, worker.train, tmp_path, kind=kind, dtype=dtype))
    assert_close(got, alone(kind=kind, dtype=dtype), tolerance)


@pytest.mark.parametrize("size", [2, 3])
def test_bfloat16_moments_are_rounded_as_by_one_process(tmp_path, size):
    changes = {"moment_dtype": torch.bfloat16}
    got = together(worker.run(size, worker.train, tmp_path, **changes))["posterior.rows"]
    apart = (got - alone(**changes)["posterior.rows"]).abs()
    # where a sum over processes is rounded elsewhere a moment may fall to the other neighbour, by 2^-8
    assert float(apart.max()) < 26 * 2e-2 * 2**-8
    assert float((apart > TOLERANCE).double().mean()) < 0.02


def test_processes_take_the_scale_from_the_residuals_of_all_rows(tmp_path):
    changes = {"dtype": torch.float64, "scale_update": "closed-form", "decoder_weight_decay": 2.0}
    got = together(worker.run(2, worker.train, tmp_path, **changes))
    assert_close(got, alone(**changes), 1e-11)


def test_processes_hold_out_the_entries_that_one_holds_out(tmp_path):
    schedule = callbacks.LearningRate.cosine(4, warmup=1)
    changes = {
        "dtype": torch.float64, "held_out": 0.2, "epochs": 4, "callbacks": [schedule],
        "run_dir": tmp_path / "run", "checkpoint_every": 0,
    }  # fmt: skip
    got = together(worker.run(3, worker.train, tmp_path, **changes))
    expected = alone(**{**changes, "run_dir": tmp_path / "alone"})
    assert len(got["history"]["held_out"]) == 4
    assert_close(got, expected, 1e-11)
    # a checkpoint holds the state of the callbacks that the first process has called
    resumed = {**changes, "epochs": 5, "resume": True, "callbacks": []}
    with pytest.raises(AssertionError, match="callbacks: expected a LearningRate as in"):
        worker.run(2, worker.train, tmp_path / "more", **resumed)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (callbacks.EarlyStopping(restore_best=True), "restore_best: expected False where several"),
        (callbacks.Checkpoint("best.safetensors", best="loss"), "expected no Checkpoint where"),
    ],
)
def test_callbacks_that_need_all_rows_are_refused_by_processes(tmp_path, refused, words):
    with pytest.raises(AssertionError, match=words):
        worker.run(2, worker.train, tmp_path, callbacks=[refused])


def test_outputs_start_at_what_the_rows_of_all_processes_are(tmp_path):
    # without a step of any size the bias is what it was set to
    still = {"epochs": 1, "lr": 1e-12, "posterior_lr": 1e-12}
    changes = {"make_model": worker.of_kinds, "x": worker.kinds_table(), **still}
    model = worker.of_kinds()
    rvi_fast.fit(model, worker.kinds_table(), **worker.options(**still))
    assert model.decoder[-1].bias[1] > 7.0  # about log 3000
    for state in worker.run(3, worker.train, tmp_path, **changes):
        torch.testing.assert_close(state["decoder.2.bias"], model.decoder[-1].bias.detach())


@pytest.mark.parametrize("optimizer", ["lazy", "row"])
def test_every_mode_counts_steps_that_bring_no_row(tmp_path, optimizer):
    got = together(worker.run(2, worker.train, tmp_path, optimizer=optimizer))
    assert_close(got, alone(optimizer=optimizer))


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return worker.N

    def __getitem__(self, row):
        return worker.table()[row]


def from_many_sources(rank, size, path):
    """The same from all rows, from own rows, from a map of all rows, and from a data set of them."""
    shard, x = distributed.rows_of_rank(worker.N), worker.table()
    sources = (x, x[shard.start : shard.stop], np.load(path, mmap_mode="r"), Items())
    return [worker.train(rank, size, x=source, epochs=1) for source in sources]


def test_own_rows_all_rows_a_map_and_a_data_set_are_the_same(tmp_path):
    np.save(tmp_path / "x.npy", worker.table().numpy())
    for first, *others in worker.run(2, from_many_sources, tmp_path, path=tmp_path / "x.npy"):
        for other in others:
            assert_equal(other, first)


def with_masks(rank, size):
    """Pixels with a mask, whole and cut."""
    shard, x = distributed.rows_of_rank(worker.N), worker.table()
    pixels, mask = (x.nan_to_num() * 40 + 128).clamp(0, 255).to(torch.uint8), ~torch.isnan(x)
    own = slice(shard.start, shard.stop)
    sources = (pixels, mask), (pixels[own], mask[own]), (pixels, mask[own])
    return [worker.train(rank, size, x=x, mask=mask, epochs=1) for x, mask in sources]


def test_masks_are_cut_as_the_data_are(tmp_path):
    for first, *others in worker.run(2, with_masks, tmp_path):
        for other in others:
            assert_equal(other, first)


def counting(rank, size):
    """How many numbers each sum over all processes had."""
    sums, reduce, begin = [], dist.all_reduce, SharedMemory.begin

    def counted(tensor, *arguments, **keywords):
        sums.append(tensor.numel())
        return reduce(tensor, *arguments, **keywords)

    def begun(self, values):
        sums.append(values.numel())
        return begin(self, values)

    dist.all_reduce, SharedMemory.begin = counted, begun
    model = worker.make(distributed.rows_of_rank(worker.N))
    rvi_fast.fit(model, worker.table(), **worker.options(epochs=1))
    shared = [p.numel() for name, p in model.named_parameters() if name != "posterior.rows"]
    return sums, shared


def test_a_step_costs_one_sum_of_what_is_shared(tmp_path):
    for sums, shared in worker.run(2, counting, tmp_path):
        steps = -(-worker.N // worker.BATCH)
        padded = sum(-(-size // 32) * 32 for size in shared)
        assert sums[:steps] == [padded] * steps
        # losses of all steps, elastic error, whether parameters are finite, and whether to end
        assert sums[steps:] == [3 * steps, 2, 1, 1]


def stopping(rank, size, run_dir):
    calls = []

    def callback(model, history):
        calls.append(history.epochs)
        return history.epochs == 2

    state = worker.train(rank, size, epochs=5, callbacks=[callback], run_dir=run_dir)
    return calls, state["history"]


def test_the_first_process_calls_callbacks_and_writes_metrics_for_all(tmp_path):
    run_dir = tmp_path / "run"
    (calls, history), (none, other) = worker.run(2, stopping, tmp_path, run_dir=run_dir)
    assert (calls, none) == ([1, 2], [])
    assert history == other
    assert [record["epoch"] for record in read_metrics(run_dir)] == [1, 2]
    assert [record["loss"] for record in read_metrics(run_dir)] == history["loss"]


# what goes wrong


def different(rank, size, **changes):
    return worker.train(rank, size, **{name: values[rank] for name, values in changes.items()})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": (1e-3, 2e-3)}, "ValueError: lr: expected 0.001 in all processes, got 0.002 in 1"),
        ({"num_data": (37, 38)}, "ValueError: num_data: expected 37 in all"),
        ({"epochs": (1, 2)}, "ValueError: epochs: expected 1 in all processes, got 2 in 1"),
        (
            {"decoder_weight_decay": (0.0, 2.0)},
            "ValueError: decoder_weight_decay: expected 0.0 in all processes, got 2.0 in 1",
        ),
        ({"run_dir": (None, "run")}, "ValueError: run_dir given: expected False in all"),
        ({"dtype": (torch.float32, torch.float64)}, "ValueError: x: expected '6 torch.float32'"),
        ({"block_rows": (4, 5)}, "ValueError: block_rows: expected 4 in all processes, got 5 in 1"),
    ],
)
def test_processes_that_are_not_called_alike_all_refuse(tmp_path, changes, words):
    for process in worker.start(2, different, tmp_path, **changes):
        process.join(60)
        assert process.exitcode == 1
    for rank in range(2):
        assert words in (tmp_path / f"{rank}.txt").read_text()


def test_a_shard_does_not_train_without_the_others():
    model = worker.make(range(10))
    with pytest.raises(ValueError, match=r"model: expected all 37 rows .* got a shard of 10"):
        rvi_fast.fit(model, worker.table(), **worker.options())
    with pytest.raises(ValueError, match=r"model: expected all 37 rows, got a shard of 10"):
        export(model, "model.safetensors")


def test_a_process_that_torchrun_has_not_started_cannot_join(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="init: expected to be started by torchrun"):
        distributed.init()


def diverging(rank, size):
    x = worker.table()
    x[30] = 1e30  # a row of the last process
    worker.train(rank, size, x=x, standardize=False)


def test_a_loss_that_is_not_finite_stops_all_at_the_same_step(tmp_path):
    for process in worker.start(2, diverging, tmp_path):
        process.join(60)
        assert process.exitcode == 1
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("FloatingPointError: the loss became inf at step")


def failing(rank, size):
    def callback(model, history):
        raise KeyError("mine")

    return worker.train(rank, size, callbacks=[callback])


def test_a_callback_that_fails_ends_all(tmp_path):
    for process in worker.start(2, failing, tmp_path):
        process.join(60)
        assert process.exitcode == 1
    assert "KeyError: 'mine'" in (tmp_path / "0.txt").read_text()
    assert "RankError: the first process has failed: KeyError" in (tmp_path / "1.txt").read_text()


@pytest.mark.parametrize(("sent", "victim"), [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 1)])
def test_a_process_that_dies_or_hangs_ends_the_other(tmp_path, sent, victim):
    run_dir, options = tmp_path / "run", {"make_model": worker.built, "checkpoint_every": 0.0}
    processes = worker.start(
        2, worker.train, tmp_path, timeout=5.0, epochs=10_000, run_dir=str(run_dir), **options
    )
    while not list(run_dir.glob("checkpoints/epoch-*")):
        assert all(process.is_alive() for process in processes)
        time.sleep(0.05)
    started = time.monotonic()
    os.kill(processes[victim].pid, getattr(signal, sent))
    other = processes[1 - victim]
    other.join(60)
    waited = time.monotonic() - started
    processes[victim].kill()
    processes[victim].join()
    assert other.exitcode == 1
    assert waited < 60
    said = (tmp_path / f"{1 - victim}.txt").read_text()
    assert said.startswith(f"RankError: process {1 - victim} has lost another one")
    assert "--resume" in said
    assert rvi_fast.load(run_dir).num_data == worker.N


# loops of one's own


def own_loop(rank, size):
    model = worker.make(distributed.rows_of_rank(worker.N))
    distributed.leave_rows(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    before = model.posterior.rows.detach().clone()
    index = torch.arange(4 + rank)
    rows = distributed.rows_of_rank(worker.N)
    wrapped(index, worker.table()[rows.start : rows.stop][index], seed=1).loss.backward()
    assert torch.equal(model.posterior.rows, before)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_distributed_data_parallel_leaves_rows_alone(tmp_path):
    first, second = worker.run(2, own_loop, tmp_path)
    assert first.keys() == second.keys()
    for name in first:
        if name == "posterior.rows":
            assert [len(grad) for grad in (first[name], second[name])] == [19, 18]
            assert first[name][:4].any(1).all()
            assert not first[name][4:].any()
            assert not second[name][5:].any()
        else:
            assert torch.equal(first[name], second[name]), name


# the command line


def command(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PYTHONFAULTHANDLER"] = "1"
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


ALONE = """
import glob, os, torch
from rvi_fast.training import distributed
threads = lambda: {open(name).read().strip() for name in glob.glob("/proc/self/task/*/comm")}
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="0")
distributed.init(device="cpu")
import torch._dynamo
assert any("gloo" in name for name in threads()), threads()
distributed.leave()
print([name for name in threads() if "gloo" in name])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc on this system")
def test_threads_end_with_the_group_also_where_torch_is_imported_further_within():
    done = command("-c", ALONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_torchrun_trains_and_any_process_reads_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("table.npy", worker.table(60).numpy())
    train = ("rvi_fast.cli", "train", "--data", "table.npy", "--run-dir", "run", "--device", "cpu")
    small = ("--latent-dim", "4", "--groups", "3", "5", "--batch-size", "16", "--quiet")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    done = command("-m", *torchrun, *train, *small, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("table.npy: 60 rows, 6 features") == 1
    assert done.stdout.count("observed entries") == 1
    assert cli.main([*train[1:], *small, "--epochs", "2", "--resume"]) == 0
    assert [record["epoch"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    assert cli.main(["export", "--run-dir", "run", "--out", "model.safetensors"]) == 0
    exported, held = rvi_fast.load("model.safetensors"), rvi_fast.load("run")
    for name, value in held.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value), name
    assert cli.main(["impute", "--run-dir", "run", "--out", "filled.npy"]) == 0
    assert np.isfinite(np.load("filled.npy")).all()
