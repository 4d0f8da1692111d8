"""Damaged, hostile and full: no other model is loaded, nothing elsewhere is touched, the run goes on."""

import errno
import gzip
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rvi_fast
from rvi_fast import data, fit, models
from rvi_fast.training import CheckpointError, CheckpointWarning, export, load_checkpoint
from rvi_fast.training.runs.directory import RunDirectory, read_run, write_run

N, D = 20, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
RUN = {"data": "digits", "subset": None, "missing": 0.5, "missing_boxes": None, "seed": 0}
RUN |= {"pixels": True, "standardizer": None}


def make(**options):
    torch.manual_seed(0)
    return models.rvi(N, D, **{"latent_dim": 2, "hidden": (4,), "groups": (2,)} | options)


def run(model, **options):
    return fit(model, X, **{"epochs": 4, "batch_size": 8, "progress": False} | options)


def test_every_byte_of_an_export_that_changes_is_caught(tmp_path):
    path = tmp_path / "m.safetensors"
    export(make(), path)
    content = path.read_bytes()
    for position in range(len(content)):
        for flip in (1 << position % 8, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"m\.safetensors"):
                rvi_fast.load(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            rvi_fast.load(path)


def test_an_export_says_that_it_is_of_torch_and_those_of_0_1_0_are_read(tmp_path):
    path, model = tmp_path / "m.safetensors", make()
    export(model, path)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert metadata["format"] == "pt"
    old = {"rvi_fast": "0.1.0", "config": metadata["config"]}
    save_file(load_file(path), path, old)
    with pytest.warns(CheckpointWarning, match="has no SHA-256"):
        loaded = rvi_fast.load(path)
    assert torch.equal(loaded.posterior.rows, model.posterior.rows)


def test_every_byte_of_run_json_that_changes_is_caught(tmp_path):
    write_run(tmp_path, RUN)
    assert read_run(tmp_path) == RUN
    content = (tmp_path / "run.json").read_bytes()
    for position in range(len(content) - 1):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            (tmp_path / "run.json").write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"run\.json: is damaged"):
                read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    with pytest.warns(CheckpointWarning, match="has no SHA-256"):
        assert read_run(tmp_path) == RUN
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"sha257": "0"}))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_run(tmp_path)


@pytest.fixture
def failing(monkeypatch):
    """A disk that is full for some time: syncs of files fail while `failing` is true."""
    state, sync = {"on": False, "count": 0}, os.fsync

    def full(descriptor):
        if state["on"]:
            state["count"] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    return state


def test_a_full_disk_does_not_end_a_run_and_the_next_checkpoint_is_tried(tmp_path, failing):
    whole, model = make(), make()
    history = run(whole)

    def disk(model, seen):
        failing["on"] = seen.epochs in (2, 3)

    with pytest.warns(CheckpointWarning, match=r"no checkpoint could be written: .*No space left"):
        assert run(model, run_dir=tmp_path, checkpoint_every=0, callbacks=[disk]) == history
    assert failing["count"] > 1
    assert torch.equal(model.posterior.rows, whole.posterior.rows)
    assert load_checkpoint(tmp_path).epoch == 4
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [None, "tables"])
def test_a_disk_that_stays_full_is_an_error_at_the_end_and_the_model_is_trained(
    tmp_path, failing, place
):
    options = {} if place is None else {"storage": tmp_path / place}
    whole, model = make(), make(**options)
    block_rows = None if place is None else N
    history = run(whole, block_rows=block_rows)

    def disk(model, seen):
        failing["on"] = seen.epochs == 4

    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(CheckpointError, match="no checkpoint could be written"),
    ):
        run(
            model,
            run_dir=tmp_path / "r",
            block_rows=block_rows,
            checkpoint_every=0,
            callbacks=[disk],
        )
    failing["on"] = False
    assert torch.equal(model.reconstruct(), whole.reconstruct())
    assert load_checkpoint(tmp_path / "r").epoch == 3
    model = make(**options)
    assert run(model, run_dir=tmp_path / "r", block_rows=block_rows, resume=True) == history
    assert torch.equal(model.posterior.rows, whole.posterior.rows)


def test_an_export_to_a_full_disk_is_the_same_error(tmp_path, failing):
    failing["on"] = True
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        export(make(), tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


class Own(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return self.slope * x


PARTS = {
    "activation": lambda: nn.GELU(),
    "dropout": lambda: nn.Dropout(0.3),
    "attribute": lambda: Own(0.5),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_resume_with_another_structure_is_refused_by_name(tmp_path, part):
    def model(layer):
        made = make()
        made.decoder[1] = layer
        return made

    first = {"activation": nn.ReLU(), "dropout": nn.Dropout(0.2), "attribute": Own(0.4)}[part]
    run(model(first), epochs=1, run_dir=tmp_path)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model: decoder.1: expected .*, got"
    ):
        run(model(PARTS[part]()), run_dir=tmp_path, resume=True)
    run(model(first), run_dir=tmp_path, resume=True)


def test_a_resume_with_another_function_for_the_kl_weight_is_refused(tmp_path):
    run(make(), epochs=3, run_dir=tmp_path, kl_weight=lambda epoch: epoch / 4)
    with pytest.raises(ValueError, match=r"kl_weight: expected 0\.5 in epoch 2 .*, got 0\.6"):
        run(make(), run_dir=tmp_path, resume=True, kl_weight=lambda e: e / 4 + 0.1 * (e == 2))
    run(make(), run_dir=tmp_path, resume=True, kl_weight=lambda epoch: 0.25 * epoch)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_lock_that_leads_elsewhere_is_refused_and_its_victim_kept(tmp_path, link):
    victim, run_dir = tmp_path / "victim", tmp_path / "run"
    victim.write_text("kept")
    run_dir.mkdir()
    getattr(run_dir / ".lock", link)(victim)
    with pytest.raises(ValueError, match=r"run_dir: .*\.lock: expected a plain file"):
        RunDirectory(run_dir).__enter__()
    assert victim.read_text() == "kept"


def test_links_in_a_run_directory_lead_nowhere(tmp_path):
    victims = [tmp_path / "victim", tmp_path / "folder"]
    victims[0].write_text("kept")
    victims[1].mkdir()
    (victims[1] / "file").write_text("kept")
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    for name in (".writing-metrics.jsonl", "metrics.jsonl", ".run.json.writing", "run.json"):
        (run_dir / name).symlink_to(victims[0])
    for name in (".writing-epoch-000001", ".writing-epoch-000004", ".deleting-epoch-000000"):
        (run_dir / "checkpoints" / name).symlink_to(victims[1])
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in (".tables.json", "rows.bin", "row_step.bin"):
        (tables / name).symlink_to(victims[0])
    write_run(run_dir, RUN)
    run(make(storage=tables), run_dir=run_dir)
    assert victims[0].read_text() == "kept"
    assert os.listdir(victims[1]) == ["file"]
    assert load_checkpoint(run_dir).epoch == 4


@pytest.mark.parametrize("size", [10**9, 10**15])
@pytest.mark.parametrize("name", ["num_data", "num_features", "latent_dim", "hidden", "groups"])
def test_sizes_are_compared_before_anything_is_allocated(tmp_path, name, size, monkeypatch):
    model = make()
    value = [size] if name in ("hidden", "groups") else size
    described = model.config | {name: value}
    monkeypatch.setattr("rvi_fast.training.runs.export.config_of", lambda _: described)
    export(model, tmp_path / "m.safetensors")
    monkeypatch.setattr("rvi_fast.training.runs.described.build", lambda config: 1 / 0)
    with pytest.raises(CheckpointError, match="does not fit its own description"):
        rvi_fast.load(tmp_path / "m.safetensors")


def test_a_compressed_file_does_not_grow_without_bound(tmp_path):
    path = tmp_path / "x-idx3-ubyte.gz"
    header = struct.pack(">2xBB3I", 8, 3, 1 << 20, 64, 64)
    path.write_bytes(gzip.compress(header) + gzip.compress(b"\0" * (8 << 20)) * 700)
    with pytest.raises(data.DataError, match="more than the file can hold"):
        data.load_data(path)
