"""What every law of data promises, and what only some have."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import distributions as laws
from torch import nn
from torch.utils.data import TensorDataset

import rvi_fast
from rvi_fast import likelihoods
from rvi_fast.likelihoods.named import described

N, B, D, S = 300, 6, 4, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A law with one parameter of its own for each feature where it has any.

    `entries` are its log-densities by another road, and `wrong` are entries that it cannot give, each
    with words of the error.
    """

    make: Callable[..., likelihoods.Likelihood]
    entries: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    wrong: tuple[tuple[float, str], ...] = ()
    # a spread of outputs in which data of the law say something about each other
    spread: float = 1.0


CASES = {
    "gaussian": Case(
        lambda: likelihoods.Gaussian(D, scale="feature", initial_scale=0.5),
        lambda law, x, outputs: laws.Normal(outputs, law.scale).log_prob(x),
        spread=2.0,
    ),
    "bernoulli": Case(
        lambda: likelihoods.Bernoulli(D),
        lambda law, x, outputs: laws.Bernoulli(logits=outputs).log_prob(x),
        ((2.0, "expected 0 or 1"), (0.5, "expected 0 or 1"), (-1.0, "expected 0 or 1")),
        spread=3.0,
    ),
}


def mixed_entries(law, x, outputs):
    scale = law.parts[0].scale
    parts = (
        laws.Normal(outputs[..., 0], scale).log_prob(x[:, 0]),
        laws.Bernoulli(logits=outputs[..., 1]).log_prob(x[:, 1]),
        laws.Categorical(logits=outputs[..., 2:5]).log_prob(x[:, 2]),
        laws.Poisson(outputs[..., 5].exp()).log_prob(x[:, 3]),
    )
    return torch.stack(parts, -1)


COUNTS = ((-1.0, "expected a count 0, 1, 2, ..."), (2.5, "expected a count"))
CASES |= {
    "laplace": Case(
        lambda: likelihoods.Laplace(D, scale="feature", initial_scale=0.3),
        lambda law, x, outputs: laws.Laplace(outputs, law.scale).log_prob(x),
        spread=2.0,
    ),
    "student_t": Case(
        lambda: likelihoods.StudentT(D, scale="feature", df="feature", initial_scale=0.3),
        lambda law, x, outputs: laws.StudentT(law.df, outputs, law.scale).log_prob(x),
        spread=2.0,
    ),
    "categorical": Case(
        lambda: likelihoods.Categorical(D, num_classes=3),
        lambda law, x, outputs: laws.Categorical(logits=outputs.unflatten(-1, (D, 3))).log_prob(x),
        ((3.0, "expected a code 0 to 2"), (-1.0, "a code"), (0.5, "a code")),
        spread=3.0,
    ),
    "classes": Case(
        lambda: likelihoods.Categorical(D, num_classes=[2, 5, 3, 2]),
        lambda law, x, outputs: torch.stack(
            [
                laws.Categorical(logits=part).log_prob(x[:, column])
                for column, part in enumerate(outputs.split([2, 5, 3, 2], -1))
            ],
            -1,
        ),
        ((5.0, "expected a code 0 to "), (-1.0, "a code"), (0.5, "a code")),
        spread=3.0,
    ),
    "poisson": Case(
        lambda: likelihoods.Poisson(D),
        lambda law, x, outputs: laws.Poisson(outputs.exp()).log_prob(x),
        COUNTS,
    ),
    "negative_binomial": Case(
        lambda: likelihoods.NegativeBinomial(
            D, dispersion="feature", initial_inverse_dispersion=3.0
        ),
        lambda law, x, outputs: laws.NegativeBinomial(
            law.inverse_dispersion, logits=outputs - law.inverse_dispersion.log()
        ).log_prob(x),
        COUNTS,
    ),
    "mixed": Case(
        lambda: likelihoods.Mixed(["gaussian", "bernoulli", ("categorical", 3), "poisson"]),
        mixed_entries,
        ((-1.0, "expected "), (7.0, "expected ")),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def made(case):
    """A law in float64, outputs [B, K], data and what is observed [B, D]."""
    law = case.make().double()
    outputs = normal(B, law.num_outputs)
    x = law.sample(outputs, noise=normal(B, law.num_noise, seed=1)).detach()
    mask = torch.rand(B, D, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0] = False
    return law, outputs, x, mask


def test_value_is_the_sum_of_the_observed_log_densities(case):
    law, outputs, x, mask = made(case)
    expected = torch.where(mask, case.entries(law, x, outputs), 0.0).sum(-1)
    torch.testing.assert_close(law(x, outputs, mask), expected)
    torch.testing.assert_close(law(x.masked_fill(~mask, torch.nan), outputs), expected)
    packed = rvi_fast.pack_mask(mask)
    torch.testing.assert_close(law(x, outputs, packed), expected)
    assert expected[0] == 0


def test_what_is_missing_reaches_neither_value_nor_gradient(case):
    law, outputs, x, mask = made(case)
    expected = law(x, outputs, mask)
    for hidden in (torch.nan, torch.inf, -1e30, -3.5):
        given = outputs.clone().requires_grad_()
        law.zero_grad()
        value = law(x.masked_fill(~mask, hidden), given, mask)
        torch.testing.assert_close(value, expected)
        value.sum().backward()
        gradients = [given.grad, *(p.grad for p in law.parameters())]
        assert all(gradient.isfinite().all() for gradient in gradients)
        # the first row misses everything
        assert (given.grad[0] == 0).all()


def test_samples_of_outputs_stand_in_front(case):
    law, _, x, mask = made(case)
    outputs = normal(S, B, law.num_outputs, seed=5)
    expected = torch.stack([law(x, each, mask) for each in outputs])
    torch.testing.assert_close(law(x, outputs, mask), expected)
    noise = normal(S, B, law.num_noise, seed=6)
    each = [law.sample(*pair[:1], noise=pair[1]) for pair in zip(outputs, noise, strict=True)]
    torch.testing.assert_close(law.sample(outputs, noise=noise), torch.stack(each))
    for method in (law.mean, law.mode):
        torch.testing.assert_close(method(outputs), torch.stack([method(each) for each in outputs]))


def test_derivatives_are_right_twice(case):
    law, outputs, x, mask = made(case)
    parameters = [p.detach().clone().requires_grad_() for p in law.parameters()]
    names = [name for name, _ in law.named_parameters()]

    def value(outputs, *parameters):
        own = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(law, own, (x, outputs, mask))

    inputs = (outputs.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_outputs_are_counted_in_float32(case, dtype):
    law, outputs, x, mask = made(case)
    outputs = outputs.to(dtype)
    expected = law(x.to(dtype).double(), outputs.double(), mask)
    law = law.float()
    value = law(x.to(dtype), outputs, mask)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(law(x.to(dtype), outputs, mask), value)


def test_draws_follow_the_law_and_the_noise(case):
    law, outputs, _, _ = made(case)
    draws = law.sample(outputs.expand(4000, B, -1), noise=normal(4000, B, law.num_noise, seed=8))
    law.check(draws.reshape(-1, D))
    assert draws.shape == (4000, B, D)
    if all(law.numeric):
        mean = law.mean(outputs)
        error = (draws.mean(0) - mean) / (draws.std(0) / 4000**0.5).clamp_min(1e-3)
        assert error.abs().max() < 5
    best = law(law.mode(outputs), outputs)
    assert (torch.stack([law(x, outputs) for x in draws[:200]]) <= best + 1e-12).all()
    drawn = [
        law.sample(outputs, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_data_that_the_law_cannot_give_are_named(case):
    law, _, x, mask = made(case)
    for value, words in (*case.wrong, (torch.inf, "")):
        x[2, 1], mask[2, 1] = value, True
        rows = [7, 5, 11, 3, 2, 1]
        with pytest.raises(ValueError, match=rf"x: .*{words}.*{value}.* row 11, column 1"):
            law.check(x, mask, rows=rows)
        mask[2, 1] = False
        law.check(x, mask)


def test_a_law_is_made_again_from_what_is_written_of_it(case):
    law, outputs, x, mask = made(case)
    again = likelihoods.make(json.loads(json.dumps(described(law))), D).double()
    assert type(again) is type(law)
    assert repr(again) == repr(law)
    again.load_state_dict(copy.deepcopy(law.state_dict()))
    assert torch.equal(again(x, outputs, mask), law(x, outputs, mask))
    with pytest.raises(ValueError, match="likelihood: expected one of 5 features, got 4"):
        likelihoods.make(law, 5)


def data_of(case):
    """A table [N, D] whose columns say something about each other; what is shown, what is held out."""
    law = case.make().double()
    outputs = case.spread * normal(N, 1) @ normal(1, law.num_outputs, seed=3).sign()
    x = law.sample(outputs, noise=normal(N, law.num_noise, seed=1)).detach().float()
    chance = torch.rand(N, D, generator=torch.Generator().manual_seed(4))
    return x, chance < 0.75, (chance >= 0.75) & (chance < 0.9)


def best_constant(case, x, shown):
    """Outputs [1, K] and a law that suit all rows, as well as no row in particular can be known."""
    law = case.make()
    outputs = torch.zeros(1, law.num_outputs, requires_grad=True)
    optimizer = torch.optim.Adam([outputs, *law.parameters()], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-law(x, outputs.expand(len(x), -1), shown).mean()).backward()
        optimizer.step()
    return law, outputs.detach().expand(len(x), -1)


def trained(case, x, shown, **options):
    torch.manual_seed(0)
    model = rvi_fast.models.rvi(N, D, latent_dim=2, hidden=(), groups=(6,), likelihood=case.make())
    options = {"epochs": 60, "batch_size": 32, "lr": 0.02, "progress": False} | options
    return model, rvi_fast.fit(model, x, mask=shown, **options)


def test_held_out_entries_are_likelier_than_under_a_constant(case):
    x, shown, hidden = data_of(case)
    model, history = trained(case, x, shown, standardize=False)
    law, outputs = best_constant(case, x, shown)
    own = model.law.of_rows(x, shown)
    with torch.no_grad():
        found = own(x, model.decode(model.posterior.mean()), hidden).sum() / hidden.sum()
        constant = law.of_rows(x, shown)(x, outputs, hidden).sum() / hidden.sum()
    assert found > constant + 0.05
    assert history["elastic"][-1] < history["elastic"][0]


def test_what_is_filled_in_is_data_of_the_law(case, tmp_path):
    x, shown, _ = data_of(case)
    model, _ = trained(case, x, shown, epochs=2, run_dir=tmp_path / "run")
    filled = rvi_fast.impute(model, x, mask=shown)
    draws = rvi_fast.impute(model, x, mask=shown, num_draws=3)
    assert torch.equal(filled[shown], x[shown])
    assert torch.equal(draws[:, shown], x[shown].expand(3, -1))
    assert torch.equal(rvi_fast.impute(model, x, mask=shown, num_draws=3), draws)
    for values in (rvi_fast.impute(model, x, mask=shown, estimate="mode"), *draws):
        model.law.check(values)
    if model.law.estimated == "mode":
        model.law.check(filled)
    posterior = rvi_fast.infer(model, x[:9], mask=shown[:9], steps=5)
    again = rvi_fast.impute(model, x[:9], mask=shown[:9], posterior=posterior)
    assert torch.equal(again[shown[:9]], x[:9][shown[:9]])
    rvi_fast.training.export(model, tmp_path / "model.safetensors")
    for path in (tmp_path / "run", tmp_path / "model.safetensors"):
        loaded = rvi_fast.load(path)
        assert repr(loaded.likelihood) == repr(model.likelihood)
        assert torch.equal(rvi_fast.impute(loaded, x, mask=shown), filled)


@pytest.mark.parametrize("kind", ["array", "map", "dataset"])
def test_every_door_refuses_data_that_the_law_cannot_give(case, kind, tmp_path):
    x, _, _ = data_of(case)
    model, _ = trained(case, x, None, epochs=1)
    for value, words in case.wrong:
        bad = x.numpy().copy()
        bad[37, 2] = value
        if kind == "map":
            np.save(tmp_path / "x.npy", bad)
            bad = np.load(tmp_path / "x.npy", mmap_mode="r")
        elif kind == "dataset":
            bad = TensorDataset(torch.from_numpy(bad))
        for call in (
            lambda bad=bad: trained(case, bad, None, epochs=1),
            lambda bad=bad: rvi_fast.infer(model, bad, steps=1),
            lambda bad=bad: rvi_fast.impute(model, bad, posterior=model.posterior),
        ):
            with pytest.raises(ValueError, match=rf"{words}.*{value}.* row 37, column 2"):
                call()


def test_a_resumed_run_is_one_that_was_not_interrupted(case, tmp_path):
    x, shown, _ = data_of(case)
    whole, _ = trained(case, x, shown, epochs=3)
    trained(case, x, shown, epochs=2, run_dir=tmp_path)
    resumed, _ = trained(case, x, shown, epochs=3, run_dir=tmp_path, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_binarised_images_hold_0_and_255():
    images = torch.randint(0, 2, (N, D), generator=torch.Generator().manual_seed(0))
    pixels, numbers = (255 * images).to(torch.uint8), images.float()
    law, outputs = likelihoods.Bernoulli(D), normal(N, D)
    assert torch.equal(law(pixels, outputs), law(numbers.double(), outputs))
    filled, errors = [], []
    for x in (pixels, numbers):
        mask = torch.arange(N * D).reshape(N, D) % 3 > 0
        model, history = trained(CASES["bernoulli"], x, mask, epochs=2)
        filled.append(rvi_fast.impute(model, x, mask=mask))
        errors.append(history["elastic"][-1])
    assert torch.equal(*filled)
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    with pytest.raises(ValueError, match=r"x: expected 0 or 1 as x / 255, .* got 1 at row 0, col"):
        trained(CASES["bernoulli"], torch.ones(N, D, dtype=torch.uint8), None)


def test_widths_that_do_not_fit_are_named(case):
    law, outputs, x, _ = made(case)
    wide = law.num_outputs + 1
    with pytest.raises(ValueError, match=rf"decoder: expected {law.num_outputs} outputs.*{wide}"):
        rvi_fast.models.LatentModel(rvi_fast.RelayPosterior(N, 3), nn.Linear(3, wide), law)
    with pytest.raises(ValueError, match=r"(x|scale): expected .*"):
        law(x[:, :3], outputs)
    with pytest.raises(ValueError, match=r"^\w+: expected shape"):
        law(x, torch.zeros(B, wide, dtype=torch.float64))


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("gauss", ValueError, r"likelihood: expected one of .*gaussian.*, got 'gauss'"),
        (3, TypeError, r"likelihood: expected a name, a module, or .*, got 3"),
        (nn.Identity(), ValueError, "likelihood: expected one of 4 features, got None"),
    ],
)
def test_what_is_no_likelihood_is_named(spec, error, words):
    with pytest.raises(error, match=words):
        rvi_fast.models.vad(N, D, likelihood=spec)


def test_a_law_without_a_name_is_a_model_of_ones_own(tmp_path):
    class Laplace(likelihoods.Elementwise):
        location_scale = True

        def log_density(self, x, outputs):
            return -(x - outputs).abs() - math.log(2)

    x = normal(N, D).float()
    model = rvi_fast.models.vae(N, D, latent_dim=2, hidden=(3,), likelihood=Laplace(D))
    assert model.config is None
    with pytest.raises(ValueError, match=r"eval_every: expected 0 for a Laplace, .* mean"):
        rvi_fast.fit(model, x, progress=False)
    rvi_fast.fit(model, x, epochs=1, eval_every=0, progress=False)
    with pytest.raises(ValueError, match=r"expected one with a method mean\(outputs\).*Laplace"):
        rvi_fast.impute(model, x)
    with pytest.raises(ValueError, match=r"expected one with a method sample\(outputs\)"):
        rvi_fast.impute(model, x, num_draws=1)
    with pytest.raises(ValueError, match="scale_factor: expected 1"):
        rvi_fast.infer(rvi_fast.models.vad(N, D, likelihood=Laplace(D)), x, scale_factor=2.0)
