"""Outputs start at the law of their column as a whole, known from the data."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import rvi_fast
from rvi_fast import likelihoods
from rvi_fast.likelihoods import make

CODES = [0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 2.0]
COLUMNS = {
    "gaussian": [5.0, 1.0, 2.0, 7.0, 8.0, 9.0, 1.0],
    "bernoulli": [0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
    "classes": CODES,
    "poisson": [3000.0, 5000.0, 4000.0, 1000.0, 2000.0, 7000.0, 6000.0],
    "negative_binomial": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
}
LAWS = ["gaussian", "bernoulli", ("categorical", 3), "poisson", "negative_binomial"]
X = torch.tensor(list(COLUMNS.values())).T.contiguous()
MASK = torch.ones_like(X, dtype=torch.bool)
MASK[0] = False
# of the six rows that are observed; half an entry beside those of each class
BERNOULLI = math.log(5.5 / 1.5)
CLASSES = [math.log(2.5 / 6.5), math.log(0.5 / 6.5), math.log(4.5 / 6.5)]
COUNTS = [math.log(25_000.5 / 6.5), math.log(1.5 / 6.5)]
EXPECTED = torch.tensor([math.nan, BERNOULLI, *CLASSES, *COUNTS], dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), equal_nan=True, rtol=1e-5, atol=0)


def test_each_law_says_where_its_outputs_start():
    law = make(LAWS, 5)
    close(law.initial_outputs(law.totals(X, MASK)), EXPECTED)
    close(law.initial_outputs(law.totals(X.masked_fill(~MASK, torch.nan))), EXPECTED)
    parts = law.totals(X[:3], MASK[:3]) + law.totals(X[3:], MASK[3:])
    close(law.initial_outputs(parts), EXPECTED)


@pytest.mark.parametrize("size_factor", [False, True])
@pytest.mark.parametrize("kind", [likelihoods.Poisson, likelihoods.NegativeBinomial])
def test_a_rate_is_that_of_a_row_of_size_one(kind, size_factor):
    law = kind(2, size_factor=size_factor)
    x = torch.tensor([[10.0, 30.0], [100.0, 300.0]])
    sizes = torch.tensor([41.0 / 3, 401.0 / 3]) if size_factor else torch.ones(2)
    expected = ((x.sum(0) + 0.5) / (sizes.sum() + 0.5)).log()
    close(law.initial_outputs(law.totals(x)), expected)


def test_pixels_count_as_fractions():
    law = likelihoods.Bernoulli(2)
    pixels = torch.tensor([[0, 255], [255, 255], [255, 255]], dtype=torch.uint8)
    expected = torch.tensor([2.5 / 1.5, 3.5 / 0.5]).log()
    close(law.initial_outputs(law.totals(pixels)), expected)


def started(x, build=rvi_fast.models.rvi, likelihood=LAWS, **options):
    """The last bias after a training too slow to move it, and the model."""
    generator = torch.Generator().manual_seed(0)
    model = build(len(x), 5, latent_dim=2, likelihood=likelihood, generator=generator)
    before = model.last_bias.detach().clone()
    rvi_fast.fit(model, x, epochs=1, lr=1e-30, progress=False, **options)
    return before, model


@pytest.mark.parametrize("kind", ["array", "mask", "map", "dataset", "vad"])
def test_training_starts_there_whatever_holds_the_table(kind, tmp_path):
    given, options = X.masked_fill(~MASK, torch.nan), {}
    if kind == "mask":
        given, options = X, {"mask": MASK}
    elif kind == "map":
        np.save(tmp_path / "x.npy", given.numpy())
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "dataset":
        given = TensorDataset(given)
    elif kind == "vad":
        options["build"] = rvi_fast.models.vad
    before, model = started(given, **options)
    assert before[1:].eq(0).all()
    assert before[0] != 0
    close(model.last_bias.detach(), torch.where(EXPECTED.isnan(), before.double(), EXPECTED))


@pytest.mark.parametrize(
    ("build", "likelihood"),
    [
        (rvi_fast.models.rvi, "gaussian"),
        # a decoder that knows the columns would leave it nothing to learn
        (rvi_fast.models.vae, LAWS),
    ],
)
def test_gaussians_and_encoders_keep_their_first_values(build, likelihood):
    before, model = started(X, build, likelihood)
    assert before.ne(0).all()
    assert torch.equal(model.last_bias.detach(), before)


def test_what_was_learned_before_stays():
    _, model = started(X)
    with torch.no_grad():
        model.last_bias.add_(1.0)
    before = model.last_bias.detach().clone()
    rvi_fast.fit(model, X, epochs=1, lr=1e-30, progress=False)
    assert torch.equal(model.last_bias.detach(), before)
    state = model.state_dict()
    other = rvi_fast.models.rvi(len(X), 5, latent_dim=2, likelihood=LAWS)
    other.scaler = model.scaler
    other.load_state_dict(state)
    rvi_fast.fit(other, X, epochs=1, lr=1e-30, progress=False)
    assert torch.equal(other.last_bias.detach(), before)


def test_a_fit_that_is_refused_leaves_the_bias_as_it_was(tmp_path):
    model = rvi_fast.models.rvi(len(X), 5, latent_dim=2, likelihood=LAWS)

    def weight(epoch):
        raise ValueError("no weight")

    with pytest.raises(ValueError, match="no weight"):
        rvi_fast.fit(model, X, epochs=1, progress=False, run_dir=tmp_path, kl_weight=weight)
    assert model.last_bias[1:].eq(0).all()


def test_decoders_without_a_last_bias_are_trained_as_they_are():
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False))
    posterior = rvi_fast.RelayPosterior(len(X), 2, groups=(4,))
    model = rvi_fast.models.LatentModel(posterior, decoder, likelihoods.Poisson(3))
    rvi_fast.fit(model, X[:, [4, 4, 4]], epochs=1, progress=False)
    assert model.last_bias is None


def test_a_bad_entry_of_a_data_set_is_named_before_anything_changes():
    bad = X.clone()
    bad[4, 3] = -2.0
    with pytest.raises(ValueError, match=r"a count .* got -2\.0 at row 4, column 3"):
        started(TensorDataset(bad[:, [4, 4, 4, 3, 4]]), likelihood="poisson")


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_counts_in_the_thousands_are_trained_with_defaults(likelihood):
    """Beyond what a bias reaches by steps of the learning rate: log 5,000 is 8.5."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(400, 2))
    rates = 5000 * np.exp(0.6 * hidden @ generator.normal(size=(2, 6)))
    x = generator.poisson(rates * generator.gamma(20, 1 / 20, rates.shape)).astype(np.float32)
    mask = generator.random(x.shape) < 0.7
    model = rvi_fast.models.rvi(
        *x.shape, likelihood=likelihood, generator=torch.Generator().manual_seed(0)
    )
    rvi_fast.fit(model, x, mask=mask, epochs=60, batch_size=32, progress=False)
    filled = rvi_fast.impute(model, x, mask=mask).numpy()
    wrong = np.abs(np.log1p(filled) - np.log1p(x))[~mask].mean()
    middle = np.log1p(np.nanmedian(np.where(mask, x, np.nan), axis=0))
    assert wrong < 0.75 * np.abs(middle - np.log1p(x))[~mask].mean()
