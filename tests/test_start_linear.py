"""A model that starts from a linear-Gaussian one: its reconstructions, and the bound it should have."""

import numpy as np
import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import fit, models
from rvi_fast.models import LatentModel, ppca
from rvi_fast.training import start_linear

N, D, R = 120, 7, 3
BUILDERS = pytest.mark.parametrize("builder", [models.rvi, models.vad])


def table(seed=0):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(N, R, **options) @ torch.randn(R, D, **options)
    x = 5.0 + 3.0 * (x + 0.4 * torch.randn(N, D, **options))
    return x.masked_fill(torch.rand(N, D, **options) < 0.3, torch.nan)


X = table()


def made(builder=models.rvi, *, law=None, **options):
    options = {"latent_dim": 5, "hidden": (6,), "skip": True} | options
    if builder is models.rvi:
        options = {"groups": (4, 6)} | options
    law = law or rvi_fast.GaussianLikelihood(D, scale="feature")
    generator = torch.Generator().manual_seed(3)
    return builder(N, D, likelihood=law, generator=generator, **options).double()


def linear_of(noise="feature", rank=R):
    return ppca(D, latent_dim=rank, noise=noise).fit(X)


@BUILDERS
@pytest.mark.parametrize("hidden", [(), (6,), (8, 5)])
@pytest.mark.parametrize("standardize", [True, False])
def test_a_model_reconstructs_what_the_linear_one_does(builder, hidden, standardize):
    linear, model = linear_of(), made(builder, hidden=hidden)
    start_linear(model, linear, X, standardize=standardize)
    assert (model.scaler is not None) == standardize
    expected = linear.predictive(X)[0]
    torch.testing.assert_close(model.reconstruct(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["linear", "cluster", "mixture"])
def test_relay_and_deviation_are_the_posterior_mean_in_every_form(form):
    linear, model = linear_of(), made(form=form)
    start_linear(model, linear, X)
    expected = linear.predictive(X)[0]
    torch.testing.assert_close(model.reconstruct(), expected, rtol=1e-5, atol=1e-5)
    deviation = model.posterior.rows[:, model.posterior.layout.deviation_slice]
    relay = model.posterior.mean(deviation=False)
    torch.testing.assert_close(model.posterior.mean(), relay + deviation)


def test_relays_say_next_to_nothing_before_training():
    model = made()
    drawn = model.posterior.coefficients().clone()
    start_linear(model, linear_of(), X)
    torch.testing.assert_close(model.posterior.coefficients(), 0.01 * drawn)
    relay, mean = model.posterior.mean(deviation=False), model.posterior.mean()
    assert relay.square().mean() < 1e-5 * mean.square().mean()


def bound(model, draws=4000):
    """The evidence lower bound of each row, by many draws, and its standard error."""
    x, index = X.repeat_interleave(draws, 0), torch.arange(N).repeat_interleave(draws)
    keys = torch.arange(N * draws)
    z, kl = model.posterior(index, seed=5, noise_index=keys)
    values = (model.log_prob(x, z) - kl).view(N, draws)
    return values.mean(1), values.std(1) / draws**0.5


@BUILDERS
@pytest.mark.parametrize("noise", ["feature", "scalar"])
def test_the_bound_is_the_linear_models_likelihood_less_the_gap_of_independent_latents(
    builder, noise
):
    # in the data's units one scale is one scale
    linear = linear_of(noise)
    law = rvi_fast.GaussianLikelihood(D, scale=noise)
    model = made(builder, law=law)
    start_linear(model, linear, X, standardize=False)
    known = (~X.isnan()).double()
    psi = (2 * linear.log_scale).exp().expand(D)
    strength = linear.weight.T @ (linear.weight / psi[:, None])
    weight = linear.weight @ torch.linalg.eigh(strength)[1]
    outer = weight[:, :, None] * weight[:, None, :] / psi[:, None, None]
    precision = torch.eye(R, dtype=torch.float64) + torch.einsum("nd,drs->nrs", known, outer)
    gap = precision.diagonal(dim1=1, dim2=2).log().sum(1) - precision.logdet()
    assert gap.mean() > 0.02
    with torch.no_grad():
        found, error = bound(model)
    away = (found - (linear.log_prob(X) - 0.5 * gap)) / error
    assert away.abs().max() < 5
    assert abs(away.mean()) < 5 / N**0.5


def test_rows_that_show_everything_have_no_gap():
    full = torch.where(X.isnan(), 5.0, X)
    linear = ppca(D, latent_dim=R).fit(full)
    model = made(models.vad)
    start_linear(model, linear, full, standardize=False)
    mean, covariance = linear.posterior(full)
    # the covariance is that of principal axes: diagonal
    turned = torch.linalg.eigvalsh(covariance[0]).sqrt()
    own = model.posterior.std()[0, :R].sort()[0]
    torch.testing.assert_close(own, turned)
    assert mean.shape == (N, R)


def test_dimensions_that_the_linear_model_has_not_start_at_the_prior():
    model = made()
    start_linear(model, linear_of(), X)
    assert bool((model.posterior.std()[:, R:] == 1).all())
    torch.testing.assert_close(model.posterior.mean()[:, R:], torch.zeros(N, 2).double())
    kl = model.posterior(torch.arange(N), seed=0).kl
    own = made(models.vad, latent_dim=R)
    start_linear(own, linear_of(), X)
    torch.testing.assert_close(kl, own.posterior(torch.arange(N), seed=0).kl)


def test_one_scale_takes_the_mean_variance_of_all_features():
    linear, model = linear_of(), made(law=rvi_fast.GaussianLikelihood(D))
    start_linear(model, linear, X, standardize=False)
    expected = (2 * linear.log_scale).exp().mean().sqrt()
    torch.testing.assert_close(model.likelihood.scale, expected)


def test_a_fixed_scale_stays():
    model = made(law=rvi_fast.GaussianLikelihood(D, scale="fixed", initial_scale=0.7))
    start_linear(model, linear_of(), X)
    assert model.likelihood.scale == pytest.approx(0.7)


@BUILDERS
def test_training_goes_on_from_the_start(builder):
    linear, model = linear_of(), made(builder)
    start_linear(model, linear, X)
    scaler = model.scaler
    history = fit(model, X, epochs=30, batch_size=32, lr=1e-3, progress=False)
    assert model.scaler is scaler
    assert history["loss"][-1] < history["loss"][0]
    # better than the linear model's bound: it is no worse than what it starts from
    assert history["loss"][0] < 1.05 * -float(linear.log_prob(X).mean()) + 1
    hidden = model.decoder[-1].weight[:, :6]
    assert bool((hidden != 0).any())


def test_pixels_masks_and_data_sets_start_as_tensors_do():
    pixels = torch.randint(0, 256, (N, D), dtype=torch.uint8)
    mask = ~X.isnan()
    linear = ppca(D, latent_dim=R).fit(pixels, mask)
    expected = None
    floats = (pixels.double() / 255).masked_fill(~mask, torch.nan)
    for x, known in ((pixels, mask), (pixels.numpy(), mask.numpy()), (floats, None)):
        model = made()
        start_linear(model, linear, x, known, standardize=False)
        expected = model.posterior.rows.clone() if expected is None else expected
        torch.testing.assert_close(model.posterior.rows.detach(), expected)


def test_an_encoder_is_left_as_it_is_and_its_decoder_set():
    model = models.vae(
        N, D, latent_dim=4, hidden=(6,), skip=True, generator=torch.Generator().manual_seed(0)
    ).double()
    before = [p.clone() for p in model.posterior.parameters()]
    linear = linear_of()
    start_linear(model, linear, X, standardize=False)
    assert all(torch.equal(p, q) for p, q in zip(model.posterior.parameters(), before, strict=True))
    last = model.decoder[-1]
    assert bool((last.weight[:, :6] == 0).all())
    whole = last.weight[:, 6:] @ last.weight[:, 6:].T
    torch.testing.assert_close(whole, linear.weight @ linear.weight.T)


def test_tables_in_files_start_as_those_in_memory(tmp_path):
    linear, found = linear_of(), []
    for storage in (tmp_path / "tables", "device"):
        options = {"latent_dim": 5, "hidden": (), "groups": (4, 6), "storage": storage}
        model = models.rvi(N, D, generator=torch.Generator().manual_seed(3), **options)
        start_linear(model, linear, X)
        found.append(model.posterior.rows.detach().clone())
    assert torch.equal(*found)


REFUSALS = {
    "no linear path": (lambda: made(skip=False), linear_of, "model: expected a decoder with a"),
    "few latents": (lambda: made(latent_dim=2), linear_of, "linear: expected at most 2 factors"),
    "another law": (
        lambda: made(law=rvi_fast.likelihoods.Bernoulli(D)),
        linear_of,
        "model: expected a likelihood of shifted and scaled data, got Bernoulli",
    ),
    "other features": (made, lambda: ppca(5, latent_dim=2), "linear: expected 7 features, got 5"),
}


@pytest.mark.parametrize(("model", "linear", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_start_is_refused_and_unchanged(model, linear, message):
    model, x = model(), X
    if "Bernoulli" in message:
        x = (X > 5).double().masked_fill(X.isnan(), torch.nan)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        start_linear(model, linear(), x)
    assert model.scaler is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_module_of_ones_own_with_a_skip_will_do():
    decoder = nn.Sequential(
        models.Skip(nn.Sequential(nn.Linear(4, 6), nn.Tanh())), nn.Linear(10, D)
    )
    law = rvi_fast.GaussianLikelihood(D)
    model = LatentModel(rvi_fast.RelayPosterior(N, 4, groups=(3,)), decoder, law).double()
    linear = linear_of()
    start_linear(model, linear, np.asarray(X))
    torch.testing.assert_close(model.reconstruct(), linear.predictive(X)[0])
