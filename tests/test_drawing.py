"""Random numbers: generators of our own everywhere, torch's neither read nor set, threads alike."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rvi_fast
from rvi_fast import data
from rvi_fast.drawing import Drawing, drawing_from, may_draw
from rvi_fast.experiments import demo, experiment
from rvi_fast.sklearn import RelayEmbedder, RelayImputer

N, D, T = 60, 5, 3
ROOT = Path(__file__).parent.parent


def table():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(N, D)).astype(np.float32)
    x[generator.random(x.shape) < 0.3] = np.nan
    return x


X = table()


class Noisy(nn.Module):
    """Draws in training and in evaluation, by functions of all kinds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(T, D)

    def forward(self, z):
        z = F.dropout(z, 0.2) + 0.1 * torch.randn_like(z) * torch.rand(z.shape[-1])
        return self.layer(z + torch.normal(0.0, 0.01, z.shape[-1:]))


def decoders(kind):
    if kind == "dropout":
        layers = nn.Linear(T, 6), nn.Dropout(0.3), nn.RReLU(), nn.AlphaDropout(0.1), nn.Linear(6, D)
        return nn.Sequential(*layers)
    return Noisy()


def make(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "vae":
        return rvi_fast.models.vae(N, D, latent_dim=T, hidden=(6,), generator=generator)
    if kind == "rvi":
        options = {"latent_dim": T, "hidden": (6,), "groups": (4,), "generator": generator}
        return rvi_fast.models.rvi(N, D, **options)
    with drawing_from(seed):
        posterior = rvi_fast.RelayPosterior(N, T, groups=(4,))
        return rvi_fast.models.LatentModel(
            posterior, decoders(kind), rvi_fast.GaussianLikelihood(D)
        )


def fitted(kind, seed=0):
    model = make(kind, seed)
    rvi_fast.fit(model, X, epochs=2, batch_size=16, seed=seed, progress=False)
    return model


def trained(kind, seed):
    return torch.cat([value.flatten() for value in fitted(kind, seed).state_dict().values()])


def estimated(kind, seed):
    estimator = kind(random_state=seed, epochs=2, latent_dim=2, hidden=(4,), groups=(3,), steps=8)
    return torch.from_numpy(estimator.fit(X).transform(X))


def applied(kind, seed):
    model = fitted(kind)
    factor = 1.0 if kind == "vae" else "held-out"
    posterior = rvi_fast.infer(model, X[:20], steps=8, seed=seed, scale_factor=factor)
    draws = rvi_fast.impute(model, X[:20], posterior=posterior, num_draws=3, seed=seed)
    return torch.cat([posterior.rows.detach().flatten(), draws.flatten()])


def experimented(kind, seed, directory):
    wanted = experiment.Experiment(
        data="digits", rows=60, test_rows=30, model=kind, epochs=2, classifier_epochs=2,
        infer_steps=4, hidden=(8,), seed=seed,
    )  # fmt: skip
    found = experiment.run(
        wanted, directory / f"{kind}{seed}-{np.random.default_rng().integers(2**60)}"
    )
    return torch.tensor([*found["loss"], found["test_missing"] or 0.0, *found["cross_entropy"]])


CALLS = {
    **{f"fit {kind}": (trained, kind) for kind in ("rvi", "vae", "dropout", "noisy")},
    **{f"apply {kind}": (applied, kind) for kind in ("rvi", "vae", "dropout", "noisy")},
    "imputer": (estimated, RelayImputer),
    "embedder": (estimated, RelayEmbedder),
    "experiment": (experimented, "rvi"),
}


@pytest.mark.parametrize("name", CALLS)
def test_global_generator_is_neither_used_nor_set_and_threads_change_nothing(name, tmp_path):
    call, kind = CALLS[name]
    more = (tmp_path,) if call is experimented else ()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = [call(kind, seed, *more) for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(alone[0], alone[1])
    torch.manual_seed(2)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda seed: call(kind, seed, *more), range(4)))
    tasks = (joblib.delayed(call)(kind, seed, *more) for seed in range(4))
    jobs = joblib.Parallel(4, backend="threading")(tasks)
    assert torch.equal(torch.get_rng_state(), state)
    for found in (threads, jobs):
        for result, expected in zip(found, alone, strict=True):
            assert torch.equal(result, expected)


def test_demo_and_masks_leave_the_global_generator_alone(tmp_path):
    state = torch.get_rng_state()
    demo.run(tmp_path, epochs=1, progress=False)
    data.mcar((9, 9), 0.5, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_that_infer_do_not_rewind_the_draws_of_others():
    model, drawn = fitted("rvi"), []

    def infer(number):
        return rvi_fast.infer(model, X, steps=2, seed=number)

    torch.manual_seed(0)
    expected = torch.rand(3000)
    torch.manual_seed(0)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(infer, number) for number in range(20)]
        drawn = torch.stack([torch.rand(()) for _ in range(3000)])
        for future in running:
            future.result()
    assert len(drawn.unique()) == len(expected.unique())


def test_threads_that_infer_with_one_model_leave_its_scale_and_modes():
    model = fitted("dropout").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = [
        rvi_fast.infer(model, X[:20], steps=20, seed=seed, scale_factor=2.0).rows
        for seed in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(
            lambda seed: rvi_fast.infer(model, X[:20], steps=20, seed=seed, scale_factor=2.0).rows,
            range(8),
        )
        assert all(map(torch.equal, found, alone))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(part.training for part in model.decoder.modules())
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())


DRAWS = {
    "layers": lambda: [*nn.Linear(3, 4).parameters(), *nn.LSTM(3, 4).parameters()],
    "dropout": lambda: [F.dropout(torch.ones(9, 9)), F.alpha_dropout(torch.ones(9, 9), 0.3, True)],
    "like": lambda: [torch.rand_like(torch.ones(5)), torch.randint_like(torch.ones(5), 9)],
    "factory": lambda: [torch.rand(5), torch.randint(9, (5,)), torch.randperm(7)],
    "in place": lambda: [torch.ones(20).exponential_(), torch.ones(20).geometric_(0.3)],
    "none kept": lambda: [torch.ones(5).bernoulli_(0.0), torch.rand(5)],
    "categories": lambda: [torch.multinomial(torch.ones(9), 3), torch.poisson(torch.ones(9))],
    "lstm": lambda: [nn.LSTM(3, 4, num_layers=2, dropout=0.5)(torch.ones(2, 2, 3))[0]],
    "attention": lambda: [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3)(torch.ones(3, 2, 8))],
}


@pytest.mark.parametrize("name", DRAWS)
def test_drawing_gives_what_the_global_generator_would_give(name):
    torch.manual_seed(7)
    expected = DRAWS[name]()
    state = torch.manual_seed(8).get_state()
    with drawing_from(7):
        found = DRAWS[name]()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, found, expected))
    with drawing_from(torch.Generator().manual_seed(7)):
        assert all(map(torch.equal, DRAWS[name](), expected))


def test_reseeded_drawing_begins_again():
    drawing = Drawing(1)
    with drawing:
        first = torch.rand(5)
    drawing.reseed(1)
    with drawing:
        assert torch.equal(torch.rand(5), first)
        assert not torch.equal(torch.rand(5), first)


def test_drawing_again_in_a_backward_pass_is_refused():
    x = torch.ones(5, requires_grad=True)
    with (
        drawing_from(0),
        pytest.raises(RuntimeError, match=r"leave dropout out of torch\.utils\.checkpoint"),
    ):
        checkpoint(F.dropout, x, use_reentrant=False).sum().backward()


def test_modules_that_draw_are_told_apart():
    plain = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.BatchNorm1d(2))
    assert not may_draw(plain, training=True)
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert may_draw(dropout, training=True)
    assert not may_draw(dropout, training=False)
    assert may_draw(Noisy(), training=False)
    assert not may_draw(Noisy(), training=False, quiet=(Noisy,))
    plain[0].register_forward_hook(lambda *_: None)
    assert may_draw(plain, training=False)


def test_generator_gives_the_model_that_the_global_seed_gives():
    for builder in (rvi_fast.models.rvi, rvi_fast.models.vad, rvi_fast.models.vae):
        torch.manual_seed(3)
        expected = builder(20, D, latent_dim=T, hidden=(4,)).state_dict()
        found = builder(
            20, D, latent_dim=T, hidden=(4,), generator=torch.Generator().manual_seed(3)
        ).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_meta_posterior_of_any_size_draws_nothing(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "normal_", None)
    monkeypatch.setattr(torch.Tensor, "zero_", None)
    state = torch.get_rng_state()
    posterior = rvi_fast.RelayPosterior(10**12, T, groups=(4,), device="meta")
    assert posterior.rows.is_meta
    assert torch.equal(torch.get_rng_state(), state)


def test_no_module_but_one_touches_the_global_generator():
    pattern = re.compile(r"fork_rng|default_generator|torch\.manual_seed\(|[gs]et_rng_state")
    code = [path for path in ROOT.glob("rvi_fast/**/*.py") if "testing" not in path.parts]
    found = {path.name for path in code if pattern.search(path.read_text())}
    # `distributed.init` seeds torch in all processes as in the first, and says so
    assert found == {"launch.py"}


@pytest.mark.parametrize(("rows", "size"), [(17, 8), (1, 8), (4, 1)])
def test_batch_of_one_row_is_refused_before_training_with_batch_norm(rows, size):
    decoder = nn.Sequential(nn.Linear(T, 4), nn.BatchNorm1d(4), nn.Linear(4, D))
    likelihood = rvi_fast.GaussianLikelihood(D)
    model = rvi_fast.models.LatentModel(rvi_fast.RelayPosterior(rows, T), decoder, likelihood)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="batch_size: expected one that leaves no batch of one"):
        rvi_fast.fit(model, torch.zeros(rows, D), batch_size=size, epochs=1, progress=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    if rows == 17:
        rvi_fast.fit(model, torch.zeros(rows, D), batch_size=9, epochs=1, progress=False)


def test_small_fits_are_serial_and_leave_the_number_of_threads():
    kept = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        model = make("rvi")
        note = lambda *_: seen.append(torch.get_num_threads())  # noqa: E731
        rvi_fast.fit(model, X, epochs=1, progress=False, callbacks=[note])
        assert seen == [1]
        assert torch.get_num_threads() == 2
        model.decoder.register_forward_hook(note)
        rvi_fast.infer(model, X[:5], steps=2)
        assert seen[-2:] == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(kept)
