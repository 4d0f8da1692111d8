"""Posteriors of new rows: better than where they start, and the model as it was."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from rvi_fast import data, elastic, fit, infer, models

N, D, T = 60, 6, 4
MIX = torch.randn(2, D, generator=torch.Generator().manual_seed(9))


def table(num_data, seed, missing=0.3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, 2, generator=generator) @ MIX
    x += 0.1 * torch.randn(num_data, D, generator=generator)
    return x.masked_fill(torch.rand(num_data, D, generator=generator) < missing, torch.nan)


X, X_NEW = table(N, 0), table(23, 1)


def trained(builder=models.rvi, **options):
    torch.manual_seed(0)
    model = builder(N, D, latent_dim=T, hidden=(8,), **options)
    fit(model, X, epochs=30, batch_size=16, lr=0.03, eval_every=0, progress=False)
    return model


@pytest.fixture(scope="module", params=["linear", "cluster", "mixture", "vad"])
def any_model(request):
    if request.param == "vad":
        return trained(models.vad)
    return trained(groups=(3, 5), form=request.param)


@pytest.fixture(scope="module")
def model():
    return trained(groups=(3, 5))


def test_inferred_rows_are_better_than_where_they_start(any_model):
    posterior = infer(any_model, X_NEW, lr=0.03)
    start = any_model.posterior.for_new_data(len(X_NEW))
    with torch.no_grad():
        start.rows.copy_(any_model.posterior.mean_row().expand_as(start.rows))
    before = elastic(X_NEW, any_model.reconstruct(posterior=start))
    after = elastic(X_NEW, any_model.reconstruct(posterior=posterior))
    assert after < 0.4 * before


@torch.no_grad()
def test_rows_of_the_training_data_reach_the_trained_quality(any_model):
    posterior = infer(any_model, X, steps=150, lr=0.05)
    bounds, scores = [], []
    for candidate in (posterior, any_model.posterior):
        z, kl = candidate(torch.arange(N), seed=3, num_samples=200)
        bounds.append((any_model.likelihood(X, any_model.decoder(z)).mean(0) - kl).mean())
        scores.append(elastic(X, any_model.reconstruct(posterior=candidate)))
    assert bounds[0] > bounds[1] - 0.3
    assert scores[0] < 1.25 * scores[1]


def test_results_do_not_depend_on_the_batch_size(any_model):
    rows = infer(any_model, X_NEW, steps=12).rows
    for size in (1, 7, 23, 1000):
        torch.testing.assert_close(infer(any_model, X_NEW, steps=12, batch_size=size).rows, rows)


def test_a_row_does_not_depend_on_its_neighbours(model):
    rows = infer(model, X_NEW, steps=20).rows
    torch.testing.assert_close(infer(model, X_NEW[:5], steps=20).rows, rows[:5])
    torch.testing.assert_close(infer(model, X_NEW[:1], steps=20).rows, rows[:1])


def test_with_shared_noise_a_row_does_not_depend_on_its_place(model):
    for shared_noise in (True, False):
        rows = infer(model, X_NEW, shared_noise=shared_noise).rows
        moved = infer(model, X_NEW.roll(1, 0), shared_noise=shared_noise).rows
        same = torch.isclose(moved, rows.roll(1, 0), rtol=1e-4, atol=1e-4)
        assert same.all() if shared_noise else not same.all(1).any()


def test_the_seed_decides_and_the_global_random_state_is_left_alone(model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    rows = infer(model, X_NEW, steps=20, seed=5).rows
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(infer(model, X_NEW, steps=20, seed=5).rows, rows)
    assert not torch.equal(infer(model, X_NEW, steps=20, seed=6).rows, rows)


def test_nothing_observed_ends_near_the_prior(model):
    x = X_NEW.clone()
    x[[0, 9]] = torch.nan
    posterior = infer(model, x, steps=300, lr=0.03)
    assert posterior.rows.isfinite().all()
    alone = posterior.distribution(torch.tensor([0, 9]))
    assert alone.mean.abs().max() < 0.05
    assert (alone.stddev - 1).abs().max() < 0.3
    assert infer(model, x[:1] * torch.nan, steps=3).rows.isfinite().all()


@pytest.mark.parametrize("num_data", [1, 5, N, 2 * N])
def test_the_result_is_a_posterior_of_the_new_rows_over_the_same_relays(model, num_data):
    posterior = infer(model, table(num_data, 2), steps=2)
    assert posterior.num_data == num_data
    assert posterior.layout == model.posterior.layout
    assert torch.equal(posterior.relays, model.posterior.relays)
    assert not posterior.relays.requires_grad
    assert posterior.relays.data_ptr() != model.posterior.relays.data_ptr()
    assert posterior.rows.requires_grad
    assert posterior.rows.grad is None
    assert posterior.sparse == model.posterior.sparse
    posterior(torch.tensor([0])).kl.sum().backward()
    assert not posterior.rows.grad.is_sparse


def state_of(model):
    """Everything about a model but its values."""
    parts = {name: part.training for name, part in model.named_modules()}
    parameters = {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    return parts, parameters, model.posterior.sparse


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_also_after_an_exception(model, fails):
    model = copy.deepcopy(model).train()
    first, *_, last = model.decoder
    first.eval().weight.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    before, values = state_of(model), copy.deepcopy(model.state_dict())
    calls = []

    def break_at_the_third(*_):
        calls.append(torch.is_grad_enabled())
        if fails and len(calls) == 3:
            raise OSError("broken")

    model.decoder.register_forward_hook(break_at_the_third)
    # the rows need gradients whatever the caller has switched off
    with torch.no_grad(), pytest.raises(OSError, match="broken") if fails else nullcontext():
        infer(model, X_NEW, steps=4)
    # the first call is the one that finds out whether the decoder fits
    assert calls == [False] + [True] * (2 if fails else 4)
    assert state_of(model) == before
    assert (last.weight.grad == 1).all()
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())


def test_mask_nan_and_pixels_say_the_same(model):
    mask = ~X_NEW.isnan()
    rows = infer(model, X_NEW, steps=20).rows
    for hidden in (torch.inf, 0.0, torch.nan):
        x = X_NEW.masked_fill(~mask, hidden)
        assert torch.equal(infer(model, x, mask=mask, steps=20).rows, rows)
    model = copy.deepcopy(model)
    model.scaler = None
    pixels = torch.arange(23 * D, dtype=torch.uint8).reshape(23, D)
    fractions = (pixels / 255).masked_fill(~mask, torch.nan)
    torch.testing.assert_close(
        infer(model, pixels, mask=mask, steps=20).rows, infer(model, fractions, steps=20).rows
    )


def test_dropout_and_batch_norm_are_off():
    model = models.rvi(N, D, latent_dim=T, hidden=(8,), groups=(3,))
    model.decoder.insert(1, torch.nn.BatchNorm1d(8)).insert(2, torch.nn.Dropout(0.9)).train()
    statistics = model.decoder[1].running_mean.clone()
    first, second = (infer(model, X_NEW, steps=20).rows for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(infer(model, X_NEW[:1], steps=20).rows, first[:1])
    assert torch.equal(model.decoder[1].running_mean, statistics)


def test_an_inference_that_diverges_returns_no_posterior(model):
    with pytest.raises(FloatingPointError, match=r"loss|row"):
        infer(model, X_NEW, steps=5, lr=1e30)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps: expected an integer >= 1, got 0"),
        ({"lr": 0.0}, ValueError, "lr: expected a finite number > 0"),
        ({"lr": "fast"}, TypeError, "lr: expected a number, got 'fast'"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
        ({"seed": 1.5}, TypeError, "seed: .*1.5"),
    ],
)
def test_arguments_out_of_range_are_named(model, options, error, words):
    with pytest.raises(error, match=words):
        infer(model, X_NEW, **options)


def test_a_scale_factor_is_the_same_model_with_a_larger_scale(model):
    raised = copy.deepcopy(model)
    with torch.no_grad():
        raised.likelihood.log_scale += math.log(2.5)
    before = model.likelihood.log_scale.detach().clone()
    rows = infer(model, X_NEW, steps=12, scale_factor=2.5).rows
    torch.testing.assert_close(rows, infer(raised, X_NEW, steps=12).rows, rtol=0, atol=0)
    assert not torch.equal(rows, infer(model, X_NEW, steps=12).rows)
    assert torch.equal(model.likelihood.log_scale, before)


def test_a_factor_of_the_scale_leaves_the_model_to_the_last_bit():
    model = models.vad(1, D, latent_dim=T)
    for value in np.linspace(-3, 3, 30):
        model.likelihood.log_scale.data.fill_(float(value))
        before = model.likelihood.log_scale.item()
        wide = model.widened(3.0)
        assert wide.likelihood.scale.item() == pytest.approx(3.0 * math.exp(before))
        assert wide.decoder is model.decoder
        assert wide.posterior.rows is model.posterior.rows
        assert model.likelihood.log_scale.item() == before
        assert isinstance(model.likelihood.log_scale, torch.nn.Parameter)


@pytest.mark.parametrize("kind", ["float", "pixels"])
def test_entries_held_out_choose_a_scale_that_imputes_better(kind):
    pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
    x = data.load_data("digits").train[:1500]
    mask = data.mcar(x.shape, 0.7, seed=0)
    truth = x / 255
    if kind == "float":
        x = truth
    torch.manual_seed(0)
    digits = models.rvi(1200, 64, latent_dim=32)
    options = {"epochs": 60, "lr": 3e-3, "batch_size": 64, "eval_every": 0, "progress": False}
    fit(digits, x[:1200], mask=mask[:1200], **options)
    new, errors = (x[1200:], mask[1200:]), {}
    for factor in (1.0, "held-out"):
        posterior = infer(digits, new[0], mask=new[1], steps=40, scale_factor=factor)
        wrong = digits.reconstruct(posterior=posterior).detach().numpy() - truth[1200:]
        errors[factor] = np.square(wrong[~new[1]]).mean()
    assert errors["held-out"] < 0.93 * errors[1.0]
    again = infer(digits, new[0], mask=new[1], steps=40, scale_factor="held-out")
    assert torch.equal(again.rows, posterior.rows)


@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [
        (0.0, ValueError, "scale_factor: expected a finite number > 0, got 0.0"),
        (math.nan, ValueError, "scale_factor"),
        (True, TypeError, "scale_factor: expected a number, got True"),
        ("auto", ValueError, "scale_factor: expected a number or 'held-out', got 'auto'"),
    ],
)
def test_a_bad_scale_factor_is_refused(model, factor, error, message):
    with pytest.raises(error, match=message):
        infer(model, X_NEW, scale_factor=factor)


def test_a_scale_factor_needs_a_likelihood_and_entries(model):
    with pytest.raises(ValueError, match="expected 1 for a model with an encoder"):
        infer(models.vae(N, D, latent_dim=T), X_NEW, scale_factor=2.0)
    with pytest.raises(ValueError, match="too few to hold a tenth of them out"):
        infer(model, torch.full((2, D), torch.nan), scale_factor="held-out")


def test_encoded_rows_of_a_memory_map_are_one_table(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5000, 4), dtype=np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    posterior = infer(models.vae(10, 4, latent_dim=2, hidden=(3,)), x)
    assert (posterior.num_data, posterior.table_size, len(posterior.rows)) == (5000, 5000, 5000)
