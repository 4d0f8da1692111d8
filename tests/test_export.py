"""A model in one file: all of it comes back, and what is no such file is named."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import rvi_fast
from rvi_fast.training import CheckpointError, export

SMALL = {"latent_dim": 4, "hidden": (7,)}
BUILT = {
    "rvi": lambda: rvi_fast.models.rvi(20, 5, groups=(3, 5), form="mixture", **SMALL),
    "vad": lambda: rvi_fast.models.vad(20, 5, **SMALL),
    "vae": lambda: rvi_fast.models.vae(20, 5, mask_input=True, **SMALL),
}


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()[name].dtype == value.dtype, name


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_exported_is_what_is_loaded(tmp_path, kind, dtype):
    model = BUILT[kind]().to(dtype)
    export(model, tmp_path / "model.safetensors")
    loaded = rvi_fast.load(tmp_path / "model.safetensors")
    assert_same(model, loaded)
    assert not loaded.training
    assert loaded.config == model.config


def test_a_model_with_tables_in_files_is_loaded_into_memory(tmp_path):
    model = rvi_fast.models.rvi(20, 5, groups=(3,), storage=tmp_path / "tables", **SMALL)
    export(model, tmp_path / "model.safetensors")
    loaded = rvi_fast.load(tmp_path / "model.safetensors")
    assert_same(model, loaded)
    assert type(loaded.posterior.tables) is not type(model.posterior.tables)


def test_rows_that_lag_behind_are_written_up_to_date(tmp_path):
    model = BUILT["rvi"]()
    optimizer = rvi_fast.optim.RowAdam(model.posterior, lr=0.1)
    for index in ([0, 1], [2], [3]):
        optimizer.zero_grad()
        model(torch.tensor(index), torch.zeros(len(index), 5)).loss.backward()
        optimizer.step()
    export(model, tmp_path / "model.safetensors")
    optimizer.flush()
    held = load_file(tmp_path / "model.safetensors")["posterior.rows"]
    assert torch.equal(held, model.posterior.rows)


def test_a_model_of_ones_own_is_written_and_not_built(tmp_path):
    built = BUILT["vad"]()
    model = rvi_fast.models.LatentModel(built.posterior, built.decoder, built.likelihood)
    export(model, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"path: expected a model made by a builder"):
        rvi_fast.load(tmp_path / "own.safetensors")
    built.load_state_dict(load_file(tmp_path / "own.safetensors"))


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_a_truncated_file_is_named(tmp_path, length):
    path = tmp_path / "model.safetensors"
    export(BUILT["rvi"](), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (cannot be read|is damaged)"):
        rvi_fast.load(path)


def test_a_file_that_lacks_a_tensor_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    export(BUILT["rvi"](), path)
    tensors = load_file(path)
    del tensors["decoder.0.weight"]
    save_file(tensors, path, {"config": '{"builder": "rvi", "num_data": 20, "num_features": 5}'})
    with pytest.raises(CheckpointError, match="does not fit its own description"):
        rvi_fast.load(path)


def test_a_failed_export_leaves_the_file_before(tmp_path, monkeypatch):
    path, model = tmp_path / "model.safetensors", BUILT["vad"]()
    export(model, path)

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be written: no space"):
        export(BUILT["vad"](), path)
    assert_same(model, rvi_fast.load(path))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
