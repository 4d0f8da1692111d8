"""Models without the rows of their training data: kilobytes that serve new rows, bit for bit."""

import copy
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import distributed_worker
import pytest
import torch

import rvi_fast
from rvi_fast import fit, impute, infer, load, models
from rvi_fast.cli import main
from rvi_fast.posteriors import RowlessPosterior
from rvi_fast.training import CheckpointError, export, held_out_error

N, D = 70, 5
GENERATOR = torch.Generator().manual_seed(3)
X, NEW = (
    torch.randn(rows, D, generator=GENERATOR).masked_fill(
        torch.rand(rows, D, generator=GENERATOR) < 0.3, torch.nan
    )
    * 7
    + 20
    for rows in (N, 33)
)
SMALL = {"latent_dim": 4, "hidden": (8,)}
READING = sys.modules["rvi_fast.training.load"]
LEFT_OUT = "got one that was written or loaded with rows=False"


@pytest.fixture(scope="module", params=["rvi", "vad", "vae"])
def trained(request, tmp_path_factory):
    more = {"groups": (3, 5)} if request.param == "rvi" else {}
    model = models.BUILDERS[request.param](
        N, D, **SMALL, **more, generator=torch.Generator().manual_seed(0)
    )
    run_dir = tmp_path_factory.mktemp("run")
    fit(model, X, epochs=4, batch_size=16, lr=0.01, progress=False, run_dir=run_dir)
    return model, run_dir


def rowless(trained, tmp_path, way):
    model, run_dir = trained
    path = tmp_path / "model.safetensors"
    if way == "run":
        return load(run_dir, rows=False)
    export(model, path, rows=way == "read")
    return load(path, rows=way != "read")


# written without rows, read without rows, and a run directory
@pytest.mark.parametrize("way", ["written", "read", "run"])
def test_new_rows_get_the_bits_of_the_whole_model(trained, tmp_path, way):
    small, model = rowless(trained, tmp_path, way), trained[0]
    found, wanted = infer(small, NEW, steps=9), infer(model, NEW, steps=9)
    assert torch.equal(found.rows, wanted.rows)
    for options in ({}, {"num_draws": 3}):
        one = impute(small, NEW, posterior=found, **options)
        assert torch.equal(one, impute(model, NEW, posterior=wanted, **options))
    assert small.config == model.config
    assert not small.training


def test_entries_held_out_of_new_rows_tell_the_same(trained, tmp_path):
    rows = NEW.repeat(12, 1)
    small, model = rowless(trained, tmp_path, "written"), trained[0]
    found = held_out_error(small, rows, steps=5)
    assert found > 0
    assert found == held_out_error(model, rows, steps=5)


def test_a_file_without_rows_can_be_copied_pickled_and_written_again(trained, tmp_path):
    small, path = rowless(trained, tmp_path, "written"), tmp_path / "again.safetensors"
    export(small, path)
    wanted = infer(small, NEW, steps=5).rows
    for other in (load(path), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(infer(other, NEW, steps=5).rows, wanted)
    assert path.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    small.load_state_dict(copy.deepcopy(small).state_dict())


def test_its_size_does_not_grow_with_the_rows_and_is_kilobytes(tmp_path):
    sizes = []
    for rows in (10, 3000):
        export(models.rvi(rows, 784), tmp_path / str(rows), rows=False)
        sizes.append(os.path.getsize(tmp_path / str(rows)))
    # 150 relays of 64 numbers, 2 x 64 x 64 + 64 x 784 weights, a row of 308
    assert max(sizes) < 2**20 / 2
    assert abs(sizes[1] - sizes[0]) < 64


ASKED = {
    "fit": lambda model: fit(model, X, epochs=1, progress=False),
    "impute": lambda model: impute(model, X),
    "reconstruct": lambda model: model.reconstruct(),
    "forward": lambda model: model(torch.tensor([0]), X[:1]),
    "mean": lambda model: model.posterior.mean(),
    "std": lambda model: model.posterior.std(torch.tensor([0])),
    "coefficients": lambda model: model.posterior.coefficients(),
    "selected": lambda model: model.posterior.selected(),
    "draw": lambda model: model.posterior.draw(torch.tensor([0]), torch.tensor([0])),
    "RowAdam": lambda model: rvi_fast.optim.RowAdam(model.posterior),
    "reset_parameters": lambda model: model.posterior.reset_parameters(),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_asks_for_its_own_rows_is_refused(asked):
    model = models.rvi(N, D, groups=(3,), **SMALL)
    model.posterior = RowlessPosterior.of(model.posterior)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=LEFT_OUT):
        ASKED[asked](model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_that_is_written_keeps_its_rows(tmp_path):
    model = models.rvi(N, D, groups=(3,), **SMALL)
    optimizer = rvi_fast.optim.RowAdam(model.posterior, lr=0.1)
    for index in ([0, 1], [2], [3]):
        optimizer.zero_grad()
        model(torch.tensor(index), X[index]).loss.backward()
        optimizer.step()
    export(model, tmp_path / "small.safetensors", rows=False)
    small = load(tmp_path / "small.safetensors")
    # rows that lag behind count as they would be read
    optimizer.flush()
    assert torch.equal(small.posterior.mean_row(), model.posterior.mean_row())
    assert type(model.posterior) is rvi_fast.RelayPosterior
    assert model.posterior.num_data == N


def test_of_a_shard_the_mean_of_all_rows_is_not_known(tmp_path):
    model = models.rvi(N, D, groups=(3,), shard=range(3, 20), **SMALL)
    with pytest.raises(ValueError, match=r"expected all 70 rows, got a shard of 17"):
        export(model, tmp_path / "small.safetensors", rows=False)


def test_threads_get_what_one_thread_gets(trained, tmp_path):
    small = rowless(trained, tmp_path, "written")

    def served(seed):
        posterior = infer(small, NEW[seed:], steps=6, seed=seed)
        return impute(small, NEW[seed:], posterior=posterior, num_draws=2, seed=seed)

    wanted = [served(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(served, range(8)))
    assert all(map(torch.equal, found, wanted))


def test_the_command_line_leaves_rows_out(trained, tmp_path):
    model, run_dir = trained
    out = tmp_path / "model.safetensors"
    assert main(["export", "--run-dir", str(run_dir), "--out", str(out), "--no-rows"]) == 0
    assert torch.equal(infer(load(out), NEW, steps=5).rows, infer(model, NEW, steps=5).rows)


RUNS = {
    "memory": {},
    "row": {"optimizer": "row"},
    "blocks": {"block_rows": 16, "eval_every": 0},
    "bfloat16": {"block_rows": 16, "eval_every": 0, "moment_dtype": torch.bfloat16},
    "files": {"block_rows": 16, "eval_every": 0},
}


@pytest.mark.parametrize("kind", RUNS)
def test_rows_of_a_run_are_read_some_at_a_time_and_have_the_mean_of_all(
    tmp_path, monkeypatch, kind
):
    storage = {"storage": tmp_path / "tables"} if kind == "files" else {}
    model = models.rvi(N, D, **SMALL, groups=(3, 5), **storage)
    options = RUNS[kind] | {"epochs": 3, "batch_size": 16, "lr": 0.01, "progress": False}
    fit(model, X, run_dir=tmp_path / "run", **options)
    # sums of the same rows, of which a few are read at a time
    monkeypatch.setattr("rvi_fast.posteriors.rows._DRAWN", 32)
    monkeypatch.setattr("rvi_fast.training.runs.mean_row._SUMMED", 32)
    monkeypatch.setattr("rvi_fast.training.runs.mean_row._CHUNK", 10)
    with monkeypatch.context() as patched:
        patched.setattr(READING, "tables_of", None)
        small = load(tmp_path / "run", rows=False)
    assert torch.equal(small.posterior.mean_row(), load(tmp_path / "run").posterior.mean_row())
    assert small.config["num_data"] == N
    assert torch.equal(small.decoder[0].weight, model.decoder[0].weight)


def test_rows_in_files_of_several_processes_are_read_some_at_a_time(tmp_path):
    run_dir, place = tmp_path / "run", str(tmp_path / "tables")
    distributed_worker.trained(2, tmp_path, run_dir, storage=place, block_rows=4, epochs=1)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "tables").rglob("*.bin")}
    assert len(files) > 8
    small = load(run_dir, rows=False)
    torch.testing.assert_close(
        small.posterior.mean_row(), load(run_dir).posterior.mean_row(), rtol=0, atol=0
    )
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "tables").rglob("*.bin")}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize("lagging", [False, True])
def test_a_model_without_rows_is_loaded_in_less_memory_than_its_checkpoint_has(tmp_path, lagging):
    rows = 12_000
    model = models.rvi(rows, 3)
    more = {"block_rows": 1024, "eval_every": 0} if lagging else {}
    options = {"epochs": 1, "batch_size": 1000, "progress": False, "run_dir": tmp_path}
    fit(model, torch.randn(rows, 3), **options, **more)
    del model
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))

    def held(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

    load(tmp_path, rows=False)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = held("VmRSS")
    load(tmp_path, rows=False)
    assert held("VmHWM") - before < size
    assert size > 42e6


def test_rows_that_do_not_fit_their_description_are_damage(trained, tmp_path, monkeypatch):
    model, run_dir = trained
    if model.amortized:
        assert load(run_dir, rows=False).num_data == N
        return
    monkeypatch.setattr(READING, "shape_of_rows", lambda *_: (N + 1, 3))
    with pytest.raises(CheckpointError, match=r"has rows .* its description says"):
        load(run_dir, rows=False)
