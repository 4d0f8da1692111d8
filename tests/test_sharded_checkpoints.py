"""What several processes have written any number of them reads, and nothing else passes for it."""

import errno
import hashlib
import json
import pickle
import shutil

import distributed_worker as worker
import pytest
import torch
from distributed_worker import alone, assert_close, assert_equal, trained

import rvi_fast
from rvi_fast.training import CheckpointError
from rvi_fast.training.runs.checkpoints import CheckpointWarning, load_checkpoint


def test_a_checkpoint_of_four_opens_with_one_two_and_three(tmp_path):
    expected = alone(4, make=worker.built)
    run_dir = tmp_path / "run"
    trained(4, tmp_path / "4", run_dir, epochs=1)
    held = rvi_fast.load(run_dir)
    assert held.num_data == worker.N
    for epochs, size in ((2, 3), (3, 2)):
        got = trained(size, tmp_path / str(size), run_dir, epochs=epochs)
        assert torch.equal(rvi_fast.load(run_dir).posterior.rows, got["posterior.rows"])
    # a process that torchrun has not started goes on with it as well, and what it writes is taken up
    model = worker.built()
    options = worker.options(epochs=4, run_dir=run_dir, resume=True)
    history = rvi_fast.fit(model, worker.table(), **options)
    assert_close({**model.state_dict(), "history": dict(history)}, expected)
    assert_equal(
        trained(2, tmp_path / "last", run_dir, epochs=4),
        {**model.state_dict(), "history": dict(history)},
    )
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


def test_visits_of_rows_go_where_the_rows_go(tmp_path):
    run_dir, options = tmp_path / "run", {"optimizer": "row"}
    trained(2, tmp_path / "2", run_dir, epochs=1, **options)
    visits = load_checkpoint(run_dir).tensors["optimizer"]["rows.0.row_step"]
    assert visits.tolist() == [1] * worker.N
    got = trained(3, tmp_path / "3", run_dir, epochs=2, **options)
    assert_close(got, alone(make=worker.built, **options))


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """A run directory that two processes have written, and what they came to."""
    folder = tmp_path_factory.mktemp("two")
    return folder / "run", trained(2, folder / "2", folder / "run")


@pytest.fixture
def run_dir(two_epochs, tmp_path):
    return shutil.copytree(two_epochs[0], tmp_path / "run")


def test_two_processes_resume_bit_for_bit(two_epochs, tmp_path):
    trained(2, tmp_path / "1", tmp_path / "run", epochs=1)
    assert_equal(trained(2, tmp_path / "2", tmp_path / "run"), two_epochs[1])


def test_two_processes_resume_bit_for_bit_with_bfloat16_moments(two_epochs, tmp_path):
    narrow = {"moment_dtype": torch.bfloat16}
    expected = trained(2, tmp_path / "0", tmp_path / "whole", **narrow)
    assert not torch.equal(expected["posterior.rows"], two_epochs[1]["posterior.rows"])
    trained(2, tmp_path / "1", tmp_path / "run", epochs=1, **narrow)
    assert_equal(trained(2, tmp_path / "2", tmp_path / "run", **narrow), expected)


def test_nothing_of_a_sharded_checkpoint_is_a_pickle(two_epochs, monkeypatch):
    run_dir, trained_rows = two_epochs[0], two_epochs[1]["posterior.rows"]
    names = {file.name for file in (run_dir / "checkpoints" / "epoch-000002").iterdir()}
    assert names == {"manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"}

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    checkpoint = load_checkpoint(run_dir)
    assert torch.equal(checkpoint.tensors["model"]["posterior.rows"], trained_rows)
    assert len(checkpoint.tensors["optimizer"]["rows.0.exp_avg"]) == worker.N


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
)
def test_a_damaged_part_falls_back_to_the_checkpoint_before(run_dir, name):
    spoil(run_dir / "checkpoints" / "epoch-000002" / name)
    with pytest.warns(CheckpointWarning, match=name):
        assert load_checkpoint(run_dir).epoch == 1


def test_all_processes_pass_over_what_one_of_them_finds_damaged(run_dir, two_epochs, tmp_path):
    spoil(run_dir / "checkpoints" / "epoch-000002" / "rank-00001.safetensors")
    assert_close(trained(3, tmp_path / "3", run_dir), two_epochs[1])


def test_a_part_that_is_missing_is_named(run_dir, tmp_path):
    for epoch in (1, 2):
        (run_dir / "checkpoints" / f"epoch-00000{epoch}" / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"000001.rank-00001\.safetensors: is missing"):
        rvi_fast.load(run_dir)
    with pytest.raises(AssertionError, match=r"000001.rank-00001\.safetensors: is missing"):
        trained(2, tmp_path / "2", run_dir)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [[0, 37, "rank-00009"]],
        [[0, 36, "rank-00000"]],
        [[0, 19, "rank-00000"], [18, 19, "rank-00001"]],
        [[0, 19, "rank-00000"], [19, 18, "rank-00000"]],
        [[0, 19, "rank-00000"], [19, 18, 1]],
        "rank-00000",
    ],
)
def test_a_sealed_manifest_that_misplaces_rows_falls_back(run_dir, parts):
    path = run_dir / "checkpoints" / "epoch-000002" / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["sha256"]
    content["tensors"]["model/posterior.rows"]["parts"] = parts
    body = b'",' + json.dumps(content).encode()[1:]
    path.write_bytes(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + body)
    with pytest.warns(CheckpointWarning, match=r"manifest\.json: does not"):
        assert load_checkpoint(run_dir).epoch == 1


def on_a_full_disk(rank, size, run_dir):
    from rvi_fast.training.runs import sharded as sharded_checkpoints

    write = sharded_checkpoints.write_tensors

    def fails_later(path, *arguments):
        if rank == 1 and "epoch-000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *arguments)

    sharded_checkpoints.write_tensors = fails_later
    worker.train(rank, size, make_model=worker.built, run_dir=run_dir, checkpoint_every=0.0)


def test_a_disk_that_is_full_for_one_stops_all_and_keeps_the_checkpoint_before(tmp_path):
    run_dir = tmp_path / "run"
    for process in worker.start(2, on_a_full_disk, tmp_path, run_dir=run_dir):
        process.join(60)
        assert process.exitcode == 1
    for rank in range(2):
        assert "[Errno 28] No space left" in (tmp_path / f"{rank}.txt").read_text()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["epoch-000001"]
    assert load_checkpoint(run_dir).epoch == 1
