"""Torch's default device is for what a user makes: what runs a model goes by where its tensors lie."""

import numpy as np
import pytest
import torch
from common import Items, small_model

import rvi_fast
from rvi_fast import fit, fit_many, impute, infer, likelihoods, models, optim, training
from rvi_fast.sklearn import RelayImputer

N, D = 40, 4
OPTIONS = {"epochs": 3, "batch_size": 8, "lr": 0.02, "eval_every": 2, "progress": False}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def autoencoder():
    generator = torch.Generator().manual_seed(5)
    return models.vae(N, D, latent_dim=3, hidden=(5,), generator=generator)


def table(kind="numbers"):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=generator)
    if kind == "counts":
        x = (x.abs() * 4).floor()
    return x.masked_fill(torch.rand(N, D, generator=generator) < 0.3, torch.nan)


def numbers_of(value):
    """What was returned, as a list of tensors."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers_of(part)]
    return [torch.as_tensor(value, dtype=torch.float64, device="cpu")]


def same_under_another_default(call, tmp_path):
    """`call` gives the same whether the default device is the CPU or one that holds no numbers."""
    results = []
    for device in ("cpu", "meta"):
        prepared = call(tmp_path / device)
        next(prepared)
        torch.set_default_device(device)
        try:
            result = next(prepared)
        finally:
            torch.set_default_device(None)
        results.append(numbers_of(result))
    assert len(results[0]) == len(results[1]) > 0
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def trained(model, x, directory=None, factor=1.0, **options):
    """Ready to be trained; then a history, the model, and what is asked of it."""
    options, rows = OPTIONS | options, x[:9] if isinstance(x, torch.Tensor) else table()[:9]
    yield
    history = fit(model, x, run_dir=directory, **options)
    posterior = infer(model, rows, steps=3, scale_factor=factor)
    filled = impute(model, rows, posterior=posterior)
    drawn = impute(model, rows, posterior=posterior, num_draws=2, seed=4)
    yield history["loss"], history["elastic"], model, posterior, filled, drawn


RUNS = {
    "dense": lambda _: trained(small_model(N, D), table(), optimizer="dense"),
    "lazy": lambda _: trained(small_model(N, D), table(), optimizer="lazy"),
    "row": lambda _: trained(small_model(N, D), table(), optimizer="row"),
    "autodecoder": lambda _: trained(small_model(N, D, builder=models.vad), table()),
    "autoencoder": lambda _: trained(autoencoder(), table()),
    "standardized, its scale held out": lambda _: trained(
        small_model(N, D), table(), standardize=True, factor="held-out"
    ),
    "counts, whose last bias is set before the first step": lambda _: trained(
        small_model(N, D, likelihood="poisson"), table("counts")
    ),
    "mixed columns": lambda _: trained(
        small_model(
            N, D, likelihood=["gaussian", "poisson", likelihoods.Categorical(1, 12), "gaussian"]
        ),
        table("counts"),
    ),
    "numpy and held-out entries": lambda _: trained(
        small_model(N, D), table().numpy(), held_out=0.1, scale_update="closed-form"
    ),
    "a Dataset": lambda _: trained(small_model(N, D), Items(N, table().__getitem__)),
    "rows on the host, in blocks": lambda _: trained(
        small_model(N, D, "host"), table(), block_rows=10
    ),
    "rows in files": lambda path: trained(
        small_model(N, D, path / "tables"), table(), path / "run", block_rows=10
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_by_where_the_model_lies(name, tmp_path):
    same_under_another_default(RUNS[name], tmp_path)


def test_several_runs_together_go_by_where_the_models_lie(tmp_path):
    def call(_):
        together, x = [small_model(N, D), autoencoder()], table()
        yield
        calls = [{"model": model} for model in together]
        histories = fit_many(calls, x=x, jobs=1, **OPTIONS)
        yield [history["loss"] for history in histories], together

    same_under_another_default(call, tmp_path)


@pytest.mark.parametrize("place", ["device", "files"])
def test_checkpoints_are_read_and_runs_go_on_on_the_device_of_the_model(place, tmp_path):
    def call(path):
        model, x = small_model(N, D, path / "tables" if place == "files" else place), table()
        options = OPTIONS | {"run_dir": path / "run", "optimizer": "dense"}
        fit(model, x, **options | {"epochs": 2})
        del model
        yield
        model = rvi_fast.load(path / "run").train()
        history = fit(model, x, **options | {"resume": True})
        training.export(model, path / "model")
        yield history["loss"], rvi_fast.load(path / "run"), rvi_fast.load(path / "model")

    same_under_another_default(call, tmp_path)


def test_a_loop_of_ones_own_goes_by_where_its_tensors_lie(tmp_path):
    def call(_):
        model = small_model(N, D)
        rows = optim.RowAdam(model.posterior, lr=0.01)
        shared = torch.optim.SGD(list(model.decoder.parameters()), lr=0.01)
        x, index = table(), torch.arange(8)
        yield
        for step in range(3):
            loss = model(index, x[index], seed=step).loss
            loss.backward()
            optim.clip_grad_norm_(model.parameters(), 1.0)
            rows.step()
            shared.step()
            rows.zero_grad()
        rows.load_state_dict(rows.state_dict())
        state = rows.state_dict()["state"][0]
        model.posterior.select([1, 2, 5])
        yield model, state

    same_under_another_default(call, tmp_path)


def test_the_linear_model_goes_by_where_its_tensors_lie(tmp_path):
    def call(_):
        linear, model = models.LinearGaussian(D, latent_dim=2), small_model(N, D, skip=True)
        x = table()
        yield
        linear.fit(x, max_iter=5, groups=[0, 0, 1, 2])
        training.start_linear(model, linear, x)
        yield linear, linear.impute(x), model

    same_under_another_default(call, tmp_path)


def test_an_estimator_goes_by_its_own_device(tmp_path):
    def call(_):
        x = table().numpy().astype(np.float64)
        estimator = RelayImputer(epochs=2, batch_size=8, steps=3, random_state=0)
        yield
        yield estimator.fit_transform(x), estimator.transform(x[:5])

    same_under_another_default(call, tmp_path)
