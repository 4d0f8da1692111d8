"""Counts of any size, rows of different depths, tails and draws by inverse distribution functions."""

import math

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import likelihoods
from rvi_fast.likelihoods.quantiles import gamma_quantile, poisson_quantile

stats = pytest.importorskip("scipy.stats", reason="scipy has the exact distribution functions")
NOISE = torch.tensor([-6.0, -2.0, -0.5, 0.0, 0.3, 1.0, 3.0, 6.0], dtype=torch.float64)
BELOW = stats.norm.cdf(NOISE)


@pytest.mark.parametrize("count", [0.0, 1.0, 255.0, 1e4, 1e6, 1e7])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.2])
def test_float32_is_as_near_at_large_counts_as_at_small_ones(count, ratio):
    rate = max(ratio * count, 0.1)
    x, outputs = torch.tensor([[count]]), torch.tensor([[math.log(rate)]])
    exact = outputs.double().exp().item()
    law = likelihoods.NegativeBinomial(1, initial_inverse_dispersion=5.0)
    r = law.inverse_dispersion.double().item()
    expected = (stats.poisson.logpmf(count, exact), stats.nbinom.logpmf(count, r, r / (r + exact)))
    found = likelihoods.Poisson(1)(x, outputs).item(), law(x, outputs).item()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("output", [-1e6, -90.0, 90.0, 1e6])
@pytest.mark.parametrize("law", [likelihoods.Poisson(2), likelihoods.NegativeBinomial(2)])
def test_rates_beyond_all_counts_are_cut_and_stay_finite(law, output):
    outputs = torch.full((1, 2), output, requires_grad=True)
    value = law(torch.tensor([[0.0, 5.0]]), outputs)
    value.sum().backward()
    assert value.isfinite()
    assert outputs.grad.eq(0).all()
    assert law.mean(outputs).isfinite().all()
    assert law.mean(outputs).log().abs().max().item() == pytest.approx(30, rel=1e-5)


@pytest.mark.parametrize("rate", [1e-9, 0.01, 0.7, 1.0, 9.5, 300.0, 1e5, 1e8])
def test_poisson_draws_are_quantiles(rate):
    found = poisson_quantile(torch.tensor(rate), NOISE).numpy()
    law = stats.poisson(torch.tensor(rate).double().item())
    assert (law.cdf(found) >= BELOW * (1 - 1e-9)).all()
    assert (law.cdf(found - 1) <= BELOW * (1 + 1e-9)).all()
    # in the upper tail the numbers near 1 say little
    assert (law.sf(found) <= stats.norm.sf(NOISE) * (1 + 1e-6)).all()
    assert (law.sf(found - 1) >= stats.norm.sf(NOISE) * (1 - 1e-6)).all()


@pytest.mark.parametrize("shape", [0.02, 0.5, 1.0, 4.0, 250.0, 1e6, 4e8])
def test_gamma_draws_are_quantiles(shape):
    found = gamma_quantile(torch.tensor(shape, dtype=torch.float64), NOISE).numpy()
    expected = stats.gamma.ppf(BELOW, shape)
    kept = expected > 1e-290
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-6)
    assert (found[~kept] < 1e-280).all()


def test_size_of_a_row_comes_from_what_was_observed_of_it():
    law = likelihoods.Poisson(3, size_factor=True)
    x = torch.tensor([[4.0, torch.nan, 7.0], [torch.nan] * 3, [0.0, 0.0, 0.0]])
    outputs = torch.tensor([[0.1, 0.2, 0.3]]).expand(3, -1)
    size = torch.tensor([(1 + 11) / 3, 1.0, 1 / 4])
    rate = size[:, None] * outputs.exp()
    expected = torch.distributions.Poisson(rate).log_prob(x.nan_to_num())
    expected = torch.where(x.isnan(), 0.0, expected).sum(-1)
    torch.testing.assert_close(law(x, outputs), expected)
    rows = law.of_rows(x)
    torch.testing.assert_close(rows.mean(outputs), rate)
    torch.testing.assert_close(rows.mean(outputs.expand(2, 3, 3)), rate.expand(2, 3, 3))
    torch.testing.assert_close(law.mean(outputs), outputs.exp())
    # what is held out is scored under the size of what was shown
    shown = torch.tensor([[True, False, False]] * 3)
    hidden = torch.tensor([[False, False, True]] * 3)
    x = torch.tensor([[4.0, 9.0, 7.0]] * 3)
    expected = torch.distributions.Poisson(2.5 * outputs[:, 2].exp()).log_prob(x[:, 2])
    torch.testing.assert_close(law.of_rows(x, shown)(x, outputs, hidden), expected)
    assert likelihoods.Poisson(3).of_rows(x).__class__ is likelihoods.Poisson


@pytest.mark.parametrize("kind", [likelihoods.Poisson, likelihoods.NegativeBinomial])
def test_cells_of_different_depths_are_filled_in_at_their_own(kind):
    generator = np.random.default_rng(0)
    depth = np.exp(generator.normal(0, 1.6, (400, 1)))
    profile = np.exp(generator.normal(0, 0.5, 12))
    full = generator.poisson(8 * depth * profile).astype(np.float32)
    mask = generator.random(full.shape) < 0.7
    errors = {}
    for size_factor in (False, True):
        torch.manual_seed(0)
        law = kind(12, size_factor=size_factor)
        model = rvi_fast.models.rvi(*full.shape, latent_dim=2, hidden=(), likelihood=law)
        options = {"epochs": 30, "batch_size": 32, "lr": 0.01, "progress": False}
        history = rvi_fast.fit(model, full, mask=mask, **options)
        filled = rvi_fast.impute(model, full, mask=mask).numpy()
        draws = rvi_fast.impute(model, full, mask=mask, num_draws=4).numpy()
        model.law.check(torch.from_numpy(draws[0]))
        # a row's draws are those of its size
        rows = full.mean(1) > 30
        assert not size_factor or draws[:, rows][:, ~mask[rows]].mean() > 15
        errors[size_factor] = np.abs(filled - full)[~mask].mean()
        assert history["elastic"][-1] < history["elastic"][0]
    assert errors[True] < 0.85 * errors[False]


def test_degrees_of_freedom_follow_the_tails():
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    x = torch.stack((noise[:, 0], torch.from_numpy(stats.t.ppf(stats.norm.cdf(noise[:, 1]), 3))), 1)
    law = likelihoods.StudentT(2, scale="feature", df="feature").double()
    optimizer = torch.optim.LBFGS(law.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -law(x.double(), torch.zeros(4000, 2, dtype=torch.float64)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert law.df[0].item() > 15
    assert law.df[1].item() == pytest.approx(3.0, abs=0.5)
    assert law.scale.tolist() == pytest.approx([1.0, 1.0], abs=0.08)


def test_many_degrees_of_freedom_are_a_gaussian_in_float32():
    x, outputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(50, 3)
    law = likelihoods.StudentT(3, df="fixed", initial_df=1e6, scale="fixed", initial_scale=0.7)
    expected = rvi_fast.gaussian_log_likelihood(x, outputs, 0.7)
    torch.testing.assert_close(law(x, outputs), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: likelihoods.StudentT(2, initial_df=2.0),
            "initial_df: .* above 2, up to 1e6, got 2.0",
        ),
        (lambda: likelihoods.StudentT(2, df="row"), "df: expected scalar, feature or fixed"),
        (lambda: likelihoods.NegativeBinomial(2, dispersion="row"), "dispersion: expected scalar"),
        (lambda: likelihoods.Categorical(2, 1), "num_classes: expected at least 2, got 1"),
        (lambda: likelihoods.Categorical(2, [3]), "num_classes: expected .* 2 numbers, got 1"),
        (lambda: likelihoods.make("categorical", 2), r"expected \('categorical', k\)"),
    ],
)
def test_arguments_of_laws_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "law", [likelihoods.StudentT(3), likelihoods.Mixed(["gaussian", "poisson"])]
)
def test_a_wider_view_leaves_the_law_as_it_is(law):
    before = {name: value.clone() for name, value in law.state_dict().items()}
    x, outputs = torch.full((1, law.num_features), 9.0), torch.zeros(1, law.num_outputs)
    assert law.widened(3.0)(x, outputs) > law(x, outputs)
    assert all(torch.equal(value, before[name]) for name, value in law.state_dict().items())
    for other in (likelihoods.Poisson(2), likelihoods.Mixed(["bernoulli", ("categorical", 3)])):
        with pytest.raises(
            ValueError, match=r"scale_factor: expected 1 for a .*no scale, got 3\.0"
        ):
            other.widened(3.0)
