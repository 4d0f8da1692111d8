"""The variational auto-encoder: a network gives the posteriors, all else is as for the others."""

import copy
import math

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import EncoderPosterior, elastic, fit, impute, infer, models, reference
from rvi_fast.testing import assert_close
from rvi_fast.training import load_checkpoint
from rvi_fast.training.loop.seeds import NOISE, ORDER, stream

N, D, T = 60, 6, 3  # T is no multiple of 4: the rows are padded
GENERATOR = torch.Generator().manual_seed(0)
FULL = torch.randn(N, 2, generator=GENERATOR) @ torch.randn(2, D, generator=GENERATOR)
MASK = torch.rand(N, D, generator=GENERATOR) < 0.7
MASK[4] = False
X = FULL.masked_fill(~MASK, torch.nan)
PIXELS = torch.arange(N * D).remainder(256).reshape(N, D).to(torch.uint8)


def make(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return models.vae(N, D, latent_dim=T, **{"hidden": (9, 5)} | options)


def run(model, x=X, **options):
    return fit(model, x, **{"epochs": 4, "batch_size": 16, "lr": 0.02, "progress": False} | options)


def assert_same(model, other):
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def plain(model, x, mask, noise):
    """z and kl as anyone would write them."""
    values = torch.where(mask, x.nan_to_num(), 0.0)
    if model.posterior.mask_input:
        values = torch.cat((values, mask.to(x.dtype)), 1)
    mean, log_std = model.posterior.encoder(values).chunk(2, 1)
    posterior = torch.distributions.Normal(mean, log_std.exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior).sum(-1)
    return mean + log_std.exp() * noise, kl


def test_the_encoder_mirrors_the_decoder():
    shapes = [list(p.shape) for p in make().posterior.encoder.parameters()]
    assert shapes == [[5, D], [5], [9, 5], [9], [2 * T, 9], [2 * T]]
    assert make(mask_input=True).posterior.encoder[0].in_features == 2 * D
    assert [p.shape for p in make(hidden=()).decoder.parameters()] == [(D, T), (D,)]


@pytest.mark.parametrize("mask_input", [False, True])
@pytest.mark.parametrize("given", ["nan", "mask"])
def test_values_and_gradients_are_those_of_the_plain_model(mask_input, given):
    model = make(mask_input=mask_input).double()
    index = torch.tensor([40, 4, 7, 7, 0])
    x, mask = X[index].double(), MASK[index]
    noise = reference.normal_noise(torch.tensor([3]), index, 1, T, torch.float64)[0]
    data = (x, None) if given == "nan" else (FULL[index].double(), mask)
    z, kl = model.posterior(index, *data, seed=3)
    expected = plain(model, x, mask, noise)
    assert_close([z, kl], expected)
    weights = torch.randn_like(z), torch.randn_like(kl)
    parameters = list(model.posterior.parameters())
    got, wanted = (
        torch.autograd.grad((a * weights[0]).sum() + (b * weights[1]).sum(), parameters)
        for a, b in ((z, kl), expected)
    )
    assert_close(got, wanted)


def test_what_is_missing_does_not_reach_the_network():
    posterior, junk = make(mask_input=True).posterior, torch.randn(N, D) * 1e3
    rows = posterior.encode(X)
    assert rows.isfinite().all()
    assert torch.equal(rows, posterior.encode(torch.where(MASK, FULL, junk), MASK))
    bytes_ = torch.where(MASK, PIXELS, PIXELS + 9)
    assert torch.equal(posterior.encode(bytes_, MASK), posterior.encode(PIXELS, MASK))


def test_noise_belongs_to_the_row_and_not_to_the_batch():
    posterior = make().posterior
    order = torch.randperm(N)
    whole, _ = posterior(torch.arange(N), X, seed=5, num_samples=2)
    shuffled, _ = posterior(order, X[order], seed=5, num_samples=2)
    torch.testing.assert_close(shuffled, whole[:, order])
    one, _ = posterior(order[:1], X[order[:1]], seed=5)
    torch.testing.assert_close(one, whole[0, order[:1]])
    torch.manual_seed(1)
    drawn = posterior(order, X[order]).z
    assert not torch.equal(drawn, posterior(order, X[order]).z)
    torch.manual_seed(1)
    assert torch.equal(drawn, posterior(order, X[order]).z)


def test_an_empty_batch_and_strided_data_work():
    posterior = make().posterior
    z, kl = posterior(torch.arange(0), X[:0])
    assert (z.shape, kl.shape) == ((0, T), (0,))
    strided = torch.stack((X, X), 2)[..., 1]
    assert torch.equal(posterior.encode(strided), posterior.encode(X))


@pytest.mark.parametrize("mask_input", [False, True])
def test_fit_is_adam_on_everything(mask_input):
    model, expected = make(mask_input=mask_input), make(mask_input=mask_input)
    options = {"lr": 0.02, "posterior_lr": 0.01, "kl_weight": 0.5, "seed": 3}
    history = run(model, standardize=False, **options)
    adam = torch.optim.Adam([{"params": expected.posterior.parameters(), "lr": 0.01}], lr=0.02)
    adam.add_param_group(
        {"params": [*expected.decoder.parameters(), *expected.likelihood.parameters()]}
    )
    losses = []
    for epoch in range(4):
        generator = torch.Generator().manual_seed(stream(3, ORDER, epoch))
        seed = torch.tensor([stream(3, NOISE, epoch)])
        for index in torch.randperm(N, generator=generator).split(16):
            noise = reference.normal_noise(seed, index, 1, T, torch.float32)[0]
            z, kl = plain(expected, X[index], MASK[index], noise)
            log_prob = expected.likelihood(X[index], expected.decoder(z))
            loss = (0.5 * kl - log_prob).sum() / 16
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(16 * loss.item() / N)
    epochs = [sum(losses[4 * epoch : 4 * epoch + 4]) for epoch in range(4)]
    assert history["loss"] == pytest.approx(epochs, rel=1e-5)
    for name, tensor in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("x", "mask"), [(X, None), (FULL, MASK), (PIXELS, None), (PIXELS, MASK)])
def test_history_ends_with_the_elastic_error_of_the_model(x, mask):
    model = make()
    last = run(model, x, mask=mask)["elastic"][-1]
    reconstruction = model.reconstruct_standardized(posterior=infer(model, x, mask=mask))
    own = x if model.scaler is None else model.scaler.to_model(x, torch.float32)
    assert last == pytest.approx(elastic(own, reconstruction, mask), rel=1e-6)


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path):
    whole, first, second = make(mask_input=True), make(mask_input=True), make(mask_input=True)
    history = run(whole, epochs=6)
    run(first, epochs=3, run_dir=tmp_path)
    assert run(second, epochs=6, run_dir=tmp_path, resume=True) == history
    assert_same(second, whole)
    loaded = rvi_fast.load(tmp_path)
    assert loaded.config == whole.config
    assert_same(loaded, whole)
    assert load_checkpoint(tmp_path).epoch == 6
    with pytest.raises(ValueError, match=r"encoder\.0\.weight"):
        run(make(), epochs=7, run_dir=tmp_path, resume=True)


def test_training_depends_on_its_seed_alone():
    models_ = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        models_.append(make())
        run(models_[-1], seed=5)
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(*models_)


@pytest.mark.parametrize("mask_input", [False, True])
def test_trained_posteriors_and_imputations_beat_the_mean(mask_input):
    model = make(mask_input=mask_input, hidden=(16,))
    run(model, epochs=150, lr=0.01, eval_every=0)
    before = copy.deepcopy(model.state_dict())
    posterior = infer(model, X)
    assert posterior.num_data == N
    assert torch.equal(posterior.std(), infer(model, X).std())
    filled = impute(model, X)
    assert torch.equal(filled, impute(model, X, posterior=posterior))
    assert torch.equal(filled[MASK], X[MASK])
    assert filled.isfinite().all()
    mean = X.nanmean(0).expand(N, D)
    assert elastic(FULL, filled, ~MASK) < 0.7 * elastic(FULL, mean, ~MASK)
    draws = impute(model, X, num_draws=3)
    assert draws.shape == (3, N, D)
    assert (draws[0] != draws[1])[~MASK].all()
    assert impute(model, X[:5]).shape == (5, D)  # an encoder takes any rows
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.requires_grad for p in model.parameters())


def test_inference_of_many_rows_is_that_of_each(monkeypatch):
    model = make()
    whole = infer(model, PIXELS, mask=MASK)
    monkeypatch.setattr("rvi_fast.posteriors.encoder._CHUNK", 7)
    parts = infer(model, PIXELS, mask=MASK)
    torch.testing.assert_close(parts.mean(), whole.mean())
    torch.testing.assert_close(parts.std(), whole.std())
    z, kl = whole(torch.arange(N), seed=2)
    torch.testing.assert_close(
        [z, kl], list(model.posterior(torch.arange(N), PIXELS, MASK, seed=2))
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.reconstruct(), r"posterior: expected infer\(model, x\)"),
        (lambda model: model.posterior.encode(X[:, :5]), r"x: expected shape \[B, 6\]"),
        (lambda model: model.posterior.encode(X, MASK[:3]), "mask: expected shape"),
        (lambda model: model.posterior(torch.arange(3), X[:4]), "index: expected shape"),
        (lambda model: model.posterior(torch.arange(4), X[:4], num_samples=0), "num_samples"),
        (lambda model: run(model, X[:9]), "x: expected 60 rows"),
        (lambda _: make(hidden=(0,)), "hidden"),
        (lambda _: models.vae(N, 0), "num_features"),
        (lambda _: EncoderPosterior(nn.Linear(D, 5), N, D, T).encode(X), r"encoder\(x\)"),
    ],
)
def test_refusals_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call(make())


def test_infinite_data_are_refused_and_a_lost_network_is_noticed():
    x = X.clone()
    x[2, 3] = math.inf
    with pytest.raises(ValueError, match="row 2, column 3"):
        run(make(), x)
    model = make()
    with torch.no_grad():
        model.posterior.encoder[0].bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="loss became nan at step 0"):
        run(model)
