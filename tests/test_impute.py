"""Missing entries are filled in, observed ones come back bit for bit."""

import copy
import math
import sys

import pytest
import torch

from rvi_fast import fit, impute, infer, models

N, D = 60, 6
GENERATOR = torch.Generator().manual_seed(0)
FULL = torch.randn(N, 2, generator=GENERATOR) @ torch.randn(2, D, generator=GENERATOR)
MASK = torch.rand(N, D, generator=GENERATOR) < 0.7
X = FULL.masked_fill(~MASK, torch.nan)
PIXELS = torch.arange(N * D).remainder(256).reshape(N, D).to(torch.uint8)


def trained(**options):
    torch.manual_seed(0)
    model = models.rvi(N, D, latent_dim=4, hidden=(), groups=(3, 5))
    fit(model, X, epochs=30, batch_size=16, lr=0.03, eval_every=0, progress=False, **options)
    return model


@pytest.fixture(scope="module")
def model():
    """Its decoder is linear, so that mean and spread of the draws are known."""
    return trained()


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize("num_draws", [None, 3])
def test_observed_entries_come_back_bit_for_bit_and_the_others_finite(model, num_draws):
    x = X.clone()
    x[MASK.nonzero()[0].tolist()] = -0.0
    x[5], x[:, 2] = torch.nan, torch.nan
    x[7, 0], x[8, 0] = 3e38, 1e-42
    observed = ~x.isnan()
    filled = impute(model, x, posterior=model.posterior, num_draws=num_draws)
    assert filled.shape == ((N, D) if num_draws is None else (num_draws, N, D))
    assert filled.isfinite().all()
    assert not filled.requires_grad
    for draw in filled.reshape(-1, N, D):
        assert torch.equal(bits(draw)[observed], bits(x)[observed])


def test_without_draws_missing_entries_are_the_reconstruction(model):
    filled, reconstruction = impute(model, X), model.reconstruct()
    assert torch.equal(filled[~MASK], reconstruction[~MASK].float())
    error, guess = (FULL - filled)[~MASK], (FULL - X.nanmean(0))[~MASK]
    assert error.abs().mean() < 0.6 * guess.abs().mean()


def test_pixels_come_back_as_255ths():
    model = trained(standardize=False)
    expected = PIXELS / 255
    assert torch.equal(impute(model, PIXELS, posterior=model.posterior), expected)
    filled = impute(model, PIXELS, mask=MASK, posterior=model.posterior)
    assert torch.equal(filled[MASK], expected[MASK])
    assert torch.equal(filled[~MASK], model.reconstruct()[~MASK])


def test_nothing_missing_gives_x_itself_and_a_copy(model):
    filled = impute(model, FULL, mask=torch.ones_like(MASK), posterior=model.posterior)
    assert torch.equal(filled, FULL)
    assert filled.data_ptr() != FULL.data_ptr()


@pytest.mark.parametrize("hidden", [torch.nan, torch.inf, 0.0])
def test_values_under_the_mask_do_not_count(model, hidden):
    filled = impute(model, FULL.masked_fill(~MASK, hidden), mask=MASK.numpy())
    assert torch.equal(filled, impute(model, X))


def test_draws_have_the_moments_of_the_posterior_predictive(model):
    torch.manual_seed(1)
    draws = impute(model, X * torch.nan, posterior=model.posterior, num_draws=4000)
    weight, scale = model.decoder[0].weight, model.likelihood.scale
    spread = (model.posterior.std().square() @ weight.square().T + scale**2).sqrt().detach()
    spread = spread * model.scaler.std
    deviation = (draws.mean(0) - model.reconstruct()) / (spread / 4000**0.5)
    assert deviation.abs().max() < 5
    assert 0.9 < deviation.std() < 1.1
    assert ((draws.std(0) / spread - 1) * 8000**0.5).abs().max() < 5


def test_draws_have_the_noise_of_the_scale_that_the_posterior_was_inferred_with(model):
    raised = copy.deepcopy(model)
    with torch.no_grad():
        raised.likelihood.log_scale += math.log(2.5)
    posterior = infer(model, X, steps=20, scale_factor=2.5)
    assert (posterior.scale_factor, model.posterior.scale_factor) == (2.5, 1.0)
    draws = impute(model, X, posterior=posterior, num_draws=3)
    expected = impute(raised, X, posterior=infer(raised, X, steps=20), num_draws=3)
    torch.testing.assert_close(draws, expected)
    # an estimate has no noise
    filled = impute(model, X, posterior=posterior)
    assert torch.equal(filled, impute(raised, X, posterior=posterior))


@pytest.mark.parametrize("interval", [0.5, 0.9])
def test_bounds_hold_draws_as_often_as_is_asked(model, interval, monkeypatch):
    monkeypatch.setattr(sys.modules["rvi_fast.training.impute"], "_CHUNK", 10_000)
    low, high = impute(model, X, interval=interval, num_draws=399)
    assert (low < high)[~MASK].all()
    assert torch.equal(low[MASK], X[MASK])
    assert torch.equal(high[MASK], X[MASK])
    draws = impute(model, X, num_draws=400, seed=1)
    held = ((low <= draws) & (draws <= high))[:, ~MASK].float().mean()
    assert float(held) == pytest.approx(interval, abs=0.02)
    assert impute(model, X, interval=interval).shape == (2, N, D)
    for wrong in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="interval: expected"):
            impute(model, X, interval=wrong)
    with pytest.raises(ValueError, match="estimate: expected None beside interval"):
        impute(model, X, interval=interval, estimate="mean")


def test_a_wide_interval_has_draws_enough_to_lie_outside_of_it(model):
    low, high = impute(model, X, interval=0.999)
    draws = impute(model, X, num_draws=2000, seed=1)
    held = ((low <= draws) & (draws <= high))[:, ~MASK].float().mean()
    # between the least and the largest of 200 draws .990 lie on average
    assert float(held) == pytest.approx(0.999, abs=0.001)
    with pytest.raises(
        ValueError, match=r"num_draws: expected at least 19 for interval=0\.9, got 18"
    ):
        impute(model, X, interval=0.9, num_draws=18)
    assert impute(model, X, interval=0.9, num_draws=19).shape == (2, N, D)


def test_draws_are_independent_and_follow_the_seed(model):
    draws = impute(model, X, num_draws=2)
    assert (draws[0] != draws[1])[~MASK].all()
    again = impute(model, X, num_draws=2, seed=1)
    assert (again != draws)[:, ~MASK].all()
    torch.manual_seed(1)
    assert torch.equal(impute(model, X, num_draws=2), draws)


def test_chunks_do_not_show(model, monkeypatch):
    whole, drawn = impute(model, X), impute(model, X, num_draws=3)
    # the module's name in the package is the function's
    monkeypatch.setattr(sys.modules["rvi_fast.training.impute"], "_CHUNK", 7)
    torch.testing.assert_close(impute(model, X), whole)
    draws = impute(model, X, num_draws=2)
    assert draws.shape == (2, N, D)
    torch.testing.assert_close(draws, drawn[:2])
    assert torch.equal(draws[:, MASK], whole[MASK].expand(2, -1))


def test_new_rows_take_their_posterior_from_infer(model):
    x_new, mask = X[:23].flip(0), MASK[:23].flip(0)
    posterior = infer(model, x_new, lr=0.03)
    filled = impute(model, x_new, posterior=posterior)
    assert torch.equal(filled[mask], x_new[mask])
    assert torch.equal(filled[~mask], model.reconstruct(posterior=posterior)[~mask].float())
    assert impute(model, x_new, posterior=posterior, num_draws=2).shape == (2, 23, D)


def test_dropout_is_off_and_every_mode_is_as_before_also_after_an_exception(model):
    expected = impute(model, X)
    model = copy.deepcopy(model)
    model.decoder.append(torch.nn.Dropout(0.9))
    model.train().decoder[0].eval()
    before = {name: part.training for name, part in model.named_modules()}
    assert torch.equal(impute(model, X), expected)
    after = {name: part.training for name, part in model.named_modules()}
    model.decoder.register_forward_hook(lambda *_: 1 / 0)
    model.train().decoder[0].eval()
    with pytest.raises(ZeroDivisionError):
        impute(model, X)
    assert {name: part.training for name, part in model.named_modules()} == before
    assert after == before


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=r"x: expected 60 rows.* got 23; .*posterior=infer"):
        impute(model, X[:23])
    posterior = model.posterior.for_new_data(22)
    with pytest.raises(ValueError, match=r"x: expected 22 rows, as the posterior has, got 60$"):
        impute(model, X, posterior=posterior)
    for num_draws in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"num_draws: expected .* got {num_draws}"):
            impute(model, X, num_draws=num_draws)
