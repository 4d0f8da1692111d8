"""Semi-amortised inference: an encoder's posterior is where rows of their own start."""

import copy

import numpy as np
import pytest
import torch

from rvi_fast import EncoderPosterior, cli, fit, impute, infer, load, models, reference
from rvi_fast.posteriors.base import Posterior
from rvi_fast.training import export
from rvi_fast.training.loop.seeds import NOISE, ORDER, stream

N, D, T = 60, 6, 3
GENERATOR = torch.Generator().manual_seed(0)
FULL = torch.randn(N, 2, generator=GENERATOR) @ torch.randn(2, D, generator=GENERATOR)
X = FULL.masked_fill(torch.rand(N, D, generator=GENERATOR) < 0.3, torch.nan)
X_NEW = X[:17] * 0.9


def make(**options):
    return models.vae(
        N, D, latent_dim=T, hidden=(9,), generator=torch.Generator().manual_seed(7), **options
    )


def run(model, **options):
    return fit(model, X, **{"epochs": 4, "batch_size": 16, "lr": 0.02, "progress": False} | options)


@pytest.fixture(scope="module")
def model():
    trained = make()
    run(trained, epochs=60, eval_every=0)
    return trained


@torch.no_grad()
def lower_bound(model, posterior, x, samples=2000):
    """The evidence lower bound of each row in nats, from fixed noise, written out."""
    x = model.scaler.to_model(x, torch.float32, cut=False)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(samples, len(x), T, generator=generator)
    mean, std = posterior.mean(), posterior.std()
    scale = model.likelihood.scale
    normal = torch.distributions.Normal(model.decoder(mean + std * noise), scale)
    log_prob = torch.where(x.isnan(), 0.0, normal.log_prob(x.nan_to_num())).sum(-1).mean(0)
    prior = torch.distributions.Normal(torch.zeros(T), 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), prior).sum(-1)
    return log_prob - kl


def test_without_steps_a_posterior_is_what_the_encoder_gives(model):
    inputs = model.scaler.to_model(X_NEW, torch.float32, cut=True)
    expected = model.posterior.of(inputs).rows
    assert torch.equal(infer(model, X_NEW).rows, expected)
    assert torch.equal(infer(model, X_NEW, steps=0, lr=0.5, seed=9).rows, expected)


def test_more_steps_raise_the_lower_bound(model):
    bounds = [
        lower_bound(model, infer(model, X_NEW, steps=steps, lr=0.01), X_NEW)
        for steps in (0, 20, 100, 400)
    ]
    means = [float(bound.mean()) for bound in bounds]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.1
    # three quarters of the steps raise the bound at the decoded mean, which is not quite the same
    assert (bounds[-1] > bounds[0] - 0.1).all()


def test_steps_are_those_of_rows_that_start_where_the_encoder_says(model):
    """The same posterior as a decoder's without an encoder, whose mean row is the encoder's."""
    for row in (0, 4):
        decoder = models.vad(1, D, latent_dim=T, hidden=(9,))
        decoder.decoder.load_state_dict(model.decoder.state_dict())
        decoder.likelihood.load_state_dict(model.likelihood.state_dict())
        decoder.scaler = copy.deepcopy(model.scaler)
        with torch.no_grad():
            decoder.posterior.rows.copy_(infer(model, X_NEW, steps=0).rows[row])
        options = {"steps": 12, "lr": 0.03, "seed": 2, "shared_noise": True}
        expected = infer(decoder, X_NEW[[row]], **options).rows[0]
        torch.testing.assert_close(infer(model, X_NEW, **options).rows[row], expected)


def test_a_row_depends_on_seed_and_data_alone(model):
    before = copy.deepcopy(model.state_dict())
    rows = infer(model, X_NEW, steps=8, seed=5).rows
    assert torch.equal(infer(model, X_NEW, steps=8, seed=5).rows, rows)
    assert not torch.equal(infer(model, X_NEW, steps=8, seed=6).rows, rows)
    torch.testing.assert_close(infer(model, X_NEW, steps=8, seed=5, batch_size=5).rows, rows)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_the_scale_counts_where_there_are_steps(model):
    plain = infer(model, X_NEW, steps=8).rows
    assert not torch.equal(infer(model, X_NEW, steps=8, scale_factor=3.0).rows, plain)
    assert infer(model, X_NEW, steps=8, scale_factor="held-out").rows.isfinite().all()


def test_what_steps_cannot_be_is_named(model):
    for steps in (-1, 1.5, True):
        with pytest.raises(ValueError, match="steps: expected an integer >= 0, got"):
            infer(model, X_NEW, steps=steps)
    with pytest.raises(ValueError, match="refine_steps: expected an integer >= 0, got -1"):
        make(refine_steps=-1)
    with pytest.raises(ValueError, match="refine_lr: expected a finite number > 0, got 0"):
        make(refine_steps=1, refine_lr=0)
    with pytest.raises(ValueError, match=r"scale_factor: expected 1 .* no steps, got 2.0"):
        infer(model, X_NEW, scale_factor=2.0)
    with pytest.raises(FloatingPointError, match="lr=1e\\+30 is too large"):
        infer(model, X_NEW, steps=5, lr=1e30)


def test_a_posterior_that_gives_no_rows_takes_no_steps():
    class Fixed(Posterior):
        num_data, latent_dim = N, T

        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros(1))

        def of(self, x, mask=None):
            return torch.distributions.Normal(self.level.expand(len(x), T), 1.0)

    own = models.LatentModel(Fixed(), make().decoder, make().likelihood)
    assert infer(own, X_NEW).mean.shape == (17, T)
    with pytest.raises(ValueError, match=r"steps: expected 0 .* got 3 and Normal"):
        infer(own, X_NEW, steps=3)


def plain_step(model, x, index, seed, kl_weight):
    """Loss of a batch at rows after two steps of Adam on the mean and one on samples, by autograd."""
    mask, posterior = ~x.isnan(), model.posterior
    log_scale = model.likelihood.log_scale

    def loss_at(mean, log_std, noise):
        outputs = model.decoder(mean + log_std.exp() * noise)
        normal = torch.distributions.Normal(outputs, log_scale.exp())
        log_prob = torch.where(mask, normal.log_prob(x.nan_to_num()), 0.0).sum(-1)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
        return kl_weight * kl - log_prob

    start = posterior.encoder(x.nan_to_num())
    mean, log_std = (part.detach().clone().requires_grad_() for part in start.chunk(2, 1))
    adam = torch.optim.Adam([mean, log_std], lr=posterior.refine_lr)
    steps = posterior.refine_steps
    for step in range(steps):
        sampled = 4 * step >= 3 * steps
        noise = reference.normal_noise(seed + step + 1, index, 1, T, x.dtype)[0]
        loss = loss_at(mean, log_std, noise if sampled else torch.zeros_like(noise)).sum()
        mean.grad, log_std.grad = torch.autograd.grad(loss, (mean, log_std))
        if not sampled:
            log_std.grad = torch.zeros_like(log_std)
        adam.step()
    own = start.chunk(2, 1)
    found = [a + (b - a).detach() for a, b in zip(own, (mean, log_std), strict=True)]
    noise = reference.normal_noise(seed, index, 1, T, x.dtype)[0]
    return loss_at(*found, noise)


def test_training_goes_on_from_refined_rows():
    options = {"refine_steps": 5, "refine_lr": 0.02}
    model, expected = make(**options).double(), make(**options).double()
    x = X.double()
    settings = {"epochs": 2, "batch_size": 16, "lr": 0.01, "posterior_lr": 0.004, "seed": 3}
    history = fit(model, x, standardize=False, kl_weight=0.5, progress=False, **settings)
    adam = torch.optim.Adam([{"params": expected.posterior.parameters(), "lr": 0.004}], lr=0.01)
    adam.add_param_group(
        {"params": [*expected.decoder.parameters(), *expected.likelihood.parameters()]}
    )
    losses = []
    for epoch in range(2):
        generator = torch.Generator().manual_seed(stream(3, ORDER, epoch))
        seed, total = torch.tensor([stream(3, NOISE, epoch)]), 0.0
        for index in torch.randperm(N, generator=generator).split(16):
            adam.zero_grad()
            loss = plain_step(expected, x[index], index, seed, 0.5)
            (loss.sum() / 16).backward()
            adam.step()
            total += float(loss.detach().sum())
        losses.append(total / N)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-9)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_a_model_that_was_refined_in_training_is_refined_when_asked(tmp_path):
    model = make(refine_steps=6, refine_lr=0.02)
    history = run(model, run_dir=tmp_path / "run")
    rows = infer(model, X_NEW).rows
    assert torch.equal(infer(model, X_NEW, steps=6, lr=0.02).rows, rows)
    assert not torch.equal(infer(model, X_NEW, steps=0).rows, rows)
    assert impute(model, X_NEW, posterior=infer(model, X_NEW)).isfinite().all()
    # what the curve shows is the error after the steps
    without = make()
    without.load_state_dict(model.state_dict())
    shown = {
        steps: model.scored(*_units(model), posterior=infer(model, X, steps=steps))
        for steps in (0, 6)
    }
    errors = {steps: _elastic(*found) for steps, found in shown.items()}
    assert abs(history["elastic"][-1] - errors[6]) < 0.2 * abs(errors[0] - errors[6])
    export(model, tmp_path / "model.safetensors")
    for again in (load(tmp_path / "run"), load(tmp_path / "model.safetensors")):
        assert (again.posterior.refine_steps, again.posterior.refine_lr) == (6, 0.02)
        assert torch.equal(infer(again, X_NEW).rows, rows)


def _units(model):
    return model.scaler.to_model(X, torch.float32, cut=True), ~X.isnan()


def _elastic(truth, found):
    wrong = (truth - found)[~X.isnan()]
    return float((wrong.abs() + wrong.square()).mean())


def test_a_resume_goes_on_bit_for_bit_and_knows_the_steps(tmp_path):
    whole, broken = make(refine_steps=3), make(refine_steps=3)
    history = run(whole, epochs=4)
    run(broken, epochs=2, run_dir=tmp_path)
    again = make(refine_steps=3)
    assert run(again, epochs=4, run_dir=tmp_path, resume=True) == history
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match="refine_steps"):
        run(make(refine_steps=4), epochs=5, run_dir=tmp_path, resume=True)


def test_without_steps_a_model_is_what_it_was():
    posterior = make().posterior
    assert isinstance(posterior, EncoderPosterior)
    assert "refine_steps" not in vars(posterior)
    assert "refine_steps" not in make().config


def test_a_model_with_a_forward_of_its_own_is_refused():
    class Own(models.LatentModel):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    made = make(refine_steps=2)
    own = Own(made.posterior, made.decoder, made.likelihood)
    with pytest.raises(ValueError, match="refine_steps: expected 0 for a model with a forward"):
        run(own)


def test_the_command_line_refines_a_vae(tmp_path, capsys):
    np.save(tmp_path / "x.npy", FULL.numpy())
    common = ["--data", str(tmp_path / "x.npy"), "--run-dir", str(tmp_path / "run"), "--quiet"]
    train = ["train", "--latent-dim", "3", "--hidden", "9", "--epochs", "2", *common]
    assert cli.main([*train, "--model", "vae", "--refine-steps", "9", "--refine-lr", "0.02"]) == 0
    tables = []
    own = ["--steps", "9", "--lr", "0.02"]
    for number, steps in enumerate(([], own, ["--steps", "0"])):
        out = tmp_path / f"{number}.npy"
        assert cli.main(["infer", *common, *steps, "--out", str(out)]) == 0
        tables.append(np.load(out))
    assert np.array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[1], tables[2])
    assert cli.main([*train, "--refine-steps", "9"]) == 2
    assert "--refine-steps: expected with --model vae only" in capsys.readouterr().err
