import copy
import math

import pytest
import torch
from torch import nn

from rvi_fast import (
    GaussianLikelihood,
    RelayPosterior,
    fit,
    impute,
    infer,
    likelihoods,
    models,
)
from rvi_fast.models import latent
from rvi_fast.optim import RowAdam
from rvi_fast.reference import normal_noise
from rvi_fast.testing import assert_close

N, D, T = 20, 6, 4


def make_model(builder=models.rvi, dtype=torch.float64, **options):
    torch.manual_seed(0)
    if builder is models.rvi:
        options = {"groups": (5, 3)} | options
    return builder(N, D, latent_dim=T, hidden=(8,), **options).to(dtype)


def make_data(dtype=torch.float64, batch=7):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, D, generator=generator, dtype=dtype)
    x[torch.rand(batch, D, generator=generator) < 0.3] = math.nan
    return torch.randint(N, (batch,), generator=generator), x


class PlainVAD(nn.Module):
    """A variational auto-decoder as one writes it with what torch has."""

    def __init__(self, model):
        super().__init__()
        layout = model.posterior.layout
        rows = model.posterior.rows.detach()
        self.mean = nn.Parameter(rows[:, layout.deviation_slice].clone())
        self.log_std = nn.Parameter(rows[:, layout.log_std_slice].clone())
        self.decoder = copy.deepcopy(model.decoder)
        self.log_scale = nn.Parameter(model.likelihood.log_scale.detach().clone())

    def forward(self, index, x, noise):
        posterior = torch.distributions.Normal(self.mean[index], self.log_std[index].exp())
        prior = torch.distributions.Normal(torch.zeros_like(posterior.loc), 1.0)
        kl = torch.distributions.kl_divergence(posterior, prior).sum(-1)
        mean = self.decoder(posterior.loc + posterior.scale * noise)
        entries = torch.distributions.Normal(mean, self.log_scale.exp()).log_prob(x.nan_to_num())
        return (kl - (entries * ~x.isnan()).sum(-1)).mean()


def test_model_without_groups_equals_vad_and_a_plain_one():
    without, vad = make_model(groups=()), make_model(models.vad)
    plain = PlainVAD(vad)
    for a, b in zip(without.named_parameters(), vad.named_parameters(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    index, x = make_data()
    losses = [model(index, x, seed=3).loss for model in (without, vad)]
    noise = normal_noise(torch.tensor([3]), index, 1, T, torch.float64)[0]
    losses.append(plain(index, x, noise))
    assert_close(losses[:2], [losses[2]] * 2)
    for loss in losses:
        loss.backward()
    for a, b in zip(without.parameters(), vad.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    rows, layout = vad.posterior.rows.grad, vad.posterior.layout
    got = [rows[:, layout.deviation_slice], rows[:, layout.log_std_slice]]
    assert_close(got, [plain.mean.grad, plain.log_std.grad])
    assert_close([vad.likelihood.log_scale.grad], [plain.log_scale.grad])
    for a, b in zip(vad.decoder.parameters(), plain.decoder.parameters(), strict=True):
        assert_close([a.grad], [b.grad])


def test_objective_is_the_mean_of_its_parts():
    model = make_model()
    index, x = make_data()
    z, kl = model.posterior(index, seed=3)
    log_prob = model.likelihood(x, model.decoder(z))
    objective = model(index, x, kl_weight=0.25, seed=3)
    assert_close(objective, [(0.25 * kl - log_prob).mean(), kl.mean(), log_prob.mean()])
    mask = ~x.isnan()
    assert_close(model(index, x.nan_to_num(9.0), mask, kl_weight=0.25, seed=3), objective)


@pytest.mark.parametrize("form", ["linear", "cluster", "mixture"])
def test_training_lowers_the_loss_of_every_form(form):
    model = make_model(form=form, dtype=torch.float32)
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, D)
    shared = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    optimizers = RowAdam(model.posterior, 0.05), torch.optim.Adam(shared, 0.02)
    losses = []
    for step in range(150):
        loss = model(torch.arange(N), x, seed=step).loss
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_reconstruction_decodes_posterior_means(monkeypatch):
    monkeypatch.setattr(latent, "_CHUNK", 8)
    model = make_model()
    expected = model.decoder(model.posterior.mean()).detach()
    assert_close([model.reconstruct()], [expected])
    assert_close([model.reconstruct(torch.tensor([9, 2]))], [expected[[9, 2]]])
    fresh = model.posterior.for_new_data(3)
    assert_close([model.reconstruct(posterior=fresh)], [model.decoder(fresh.mean()).detach()])
    assert not model.reconstruct().requires_grad


def test_config_builds_the_same_model_again():
    for model in (make_model(top=(2, 0.9), form="mixture"), make_model(models.vad)):
        again = models.build(model.config)
        again.to(torch.float64).load_state_dict(model.state_dict())
        assert repr(again) == repr(model)
        index, x = make_data()
        assert torch.equal(again(index, x, seed=1).loss, model(index, x, seed=1).loss)


def test_a_config_says_where_rows_and_scale_have_started():
    options = {"initial_log_std": -1.0, "initial_scale": 0.25}
    made = make_model(**options)
    assert made.config == make_model().config | options
    assert made.posterior.std().unique().item() == pytest.approx(math.exp(-1.0))
    again = models.build(made.config)
    assert again.posterior.initial_log_std == -1.0
    assert again.likelihood.scale.item() == pytest.approx(0.25)
    assert models.vae(N, D, initial_scale=0.5).likelihood.scale.item() == pytest.approx(0.5)
    assert models.vad(N, D, initial_log_std=-3).posterior.initial_log_std == -3.0


def test_a_scale_starts_in_every_column_that_has_one():
    law = ["gaussian", "bernoulli", "student_t", "gaussian"]
    mixed = models.rvi(N, 4, likelihood=law, initial_scale=0.5).likelihood
    scales = [part.scale.tolist() for part in mixed.parts if hasattr(part, "scale")]
    assert scales == [[0.5, 0.5], [0.5]]
    own = likelihoods.Gaussian(4, scale="feature", initial_scale=0.125)
    assert models.vad(N, 4, likelihood=own).likelihood.scale.tolist() == [0.125] * 4
    fixed = likelihoods.StudentT(4, scale="fixed")
    assert models.vad(N, 4, likelihood=fixed, initial_scale=2.0).likelihood.scale.item() == 2.0


def test_compiled_model_equals_eager_at_every_batch_size():
    model = make_model(dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (7, 5, 1, 9):
        index, x = make_data(torch.float32, batch)
        results = []
        for call in (model, compiled):
            model.zero_grad()
            objective = call(index, x, seed=batch)
            objective.loss.backward()
            results.append([*objective, *(p.grad.clone() for p in model.parameters())])
        assert_close(*results, rtol=1e-5)


def test_exported_model_serves_every_batch_size():
    model = make_model()
    index, x = make_data()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model,
        (index, x),
        {"seed": 3},
        dynamic_shapes={"index": {0: batch}, "x": {0: batch}, "seed": None},
    ).module()
    for size in (7, 3, 12):
        index, x = make_data(batch=size)
        assert_close(exported(index, x, seed=3), model(index, x, seed=3))


def test_autocast_trains_close_to_float32():
    model = make_model(dtype=torch.float32)
    index, x = make_data(torch.float32)
    expected = model(index, x, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.decoder(model.posterior(index).z).dtype == torch.bfloat16
        objective = model(index, x, seed=3)
    objective.loss.backward()
    assert objective.loss.dtype == torch.float32
    assert torch.equal(objective.kl, expected.kl)
    assert_close(objective, expected, rtol=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_functional_grad_of_a_model_equals_autograd():
    model = make_model()
    index, x = make_data()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (index, x), {"seed": 3}).loss

    model(index, x, seed=3).loss.backward()
    got = torch.func.grad(loss)(parameters, x)
    assert_close([got[name] for name in parameters], [p.grad for p in model.parameters()])
    several = torch.stack([x, 2 * x])
    mapped = torch.func.vmap(loss, in_dims=(None, 0))(parameters, several)
    assert_close(mapped, [loss(parameters, one) for one in several])


def test_batch_without_rows_works_through_the_whole_model():
    model = make_model()
    index = torch.empty(0, dtype=torch.int64)
    z, kl = model.posterior(index, num_samples=2)
    log_prob = model.likelihood(torch.empty(0, D), model.decoder(z))
    assert (z.shape, kl.shape, log_prob.shape) == ((2, 0, T), (0,), (2, 0))
    (kl.sum() - log_prob.sum()).backward()
    assert not model.posterior.rows.grad.any()
    assert model.reconstruct(index).shape == (0, D)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.rvi(0, D), ValueError, "num_data: expected an integer >= 1, got 0"),
        (lambda: models.vad(N, 0), ValueError, "num_features: expected an integer >= 1, got 0"),
        (lambda: models.vad(N, D, hidden=(8, 0)), ValueError, "hidden: expected an integer >= 1"),
        (lambda: models.rvi(N, D, top=0.0), ValueError, r"top: .*got 0\.0"),
        (lambda: models.rvi(N, D, form="tree"), ValueError, "form: .*got 'tree'"),
        (lambda: models.build({"builder": "gan"}), ValueError, "builder: expected one of rvi, vad"),
        (
            lambda: models.rvi(N, D, likelihood="bernoulli", initial_scale=0.5),
            ValueError,
            "initial_scale: expected 1 for a Bernoulli, which has no scale, got 0.5",
        ),
        (lambda: models.vae(N, D, initial_scale=0.0), ValueError, "initial_scale: .* > 0, got 0.0"),
        (lambda: models.build({}), ValueError, "builder: expected one of rvi, vad.*, got None"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_model_of_your_own_parts_needs_no_builder():
    decoder = nn.Linear(T, D)
    model = models.LatentModel(RelayPosterior(N, T), decoder, GaussianLikelihood(D))
    assert (model.num_data, model.num_features, model.config) == (N, D, None)
    index, x = make_data(torch.float32)
    assert model(index, x).loss.isfinite()


def log_prob_and_gradients(model, x, z, log_prob):
    model.zero_grad()
    z = z.clone().requires_grad_()
    value = log_prob(x, z)
    value.sin().sum().backward()
    parameters = [*model.decoder.parameters(), *model.likelihood.parameters()]
    return [value.detach(), z.grad, *(p.grad.clone() for p in parameters)]


@pytest.mark.parametrize("scale", ["scalar", "feature", "fixed"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_last_layer_and_likelihood_in_one_equal_the_two_parts(scale, bias, depth, monkeypatch):
    torch.manual_seed(0)
    layers = nn.Linear(T, 8), nn.Tanh(), nn.Linear(8, D, bias=bias)
    decoder = nn.Sequential(*(layers if depth == 2 else [nn.Linear(T, D, bias=bias)]))
    likelihood = GaussianLikelihood(D, scale=scale)
    model = models.LatentModel(RelayPosterior(N, T), decoder, likelihood).double()
    _, x = make_data()
    monkeypatch.setattr(latent, "_ONE_OP", ("cpu",))
    called, forward = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda *a: called.append(a[0]) or forward(*a))
    for z in (torch.randn(7, T).double(), torch.randn(3, 7, T).double()):
        got = log_prob_and_gradients(model, x, z, model.log_prob)
        assert decoder[-1] not in called
        parts = log_prob_and_gradients(model, x, z, lambda x, z: likelihood(x, decoder(z)))
        assert called.pop() is decoder[-1]
        assert_close(got, parts)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 6\], got \[7, 5\]"):
        model.log_prob(x[:, :5], z)


class OwnLinear(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden).sigmoid()


def test_layer_that_is_more_than_linear_is_called_as_it_is(monkeypatch):
    monkeypatch.setattr(latent, "_ONE_OP", ("cpu",))
    torch.manual_seed(0)
    z, (_, x) = torch.randn(7, T), make_data(torch.float32)
    for decoder in (
        nn.Sequential(nn.Linear(T, D), nn.Sigmoid()),
        nn.Sequential(nn.Linear(T, 3), OwnLinear(3, D)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(T, D))),
        nn.Linear(T, D),
        nn.Sequential(nn.Sequential(nn.Linear(T, D))),
    ):
        model = models.LatentModel(RelayPosterior(N, T), decoder, GaussianLikelihood(D))
        expected = model.likelihood(x, decoder(z))
        assert torch.equal(model.log_prob(x, z), expected)


def test_hooks_see_what_they_ask_for(monkeypatch):
    monkeypatch.setattr(latent, "_ONE_OP", ("cpu",))
    z, (_, x) = torch.randn(7, T), make_data(torch.float32)
    for hooked in (lambda m: m.decoder[-1], lambda m: m.decoder, lambda m: m.likelihood):
        model = make_model(dtype=torch.float32)
        expected, seen = model.log_prob(x, z), []
        hooked(model).register_forward_hook(lambda *call, seen=seen: seen.append(call))
        assert_close([model.log_prob(x, z)], [expected], rtol=1e-6)
        assert len(seen) == 1


class Hidden(torch.nn.Module):
    """A decoder that does not say how wide it is."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return self.decoder(z)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda: torch.nn.Linear(3, 4), "decoder: expected 5 outputs, .*, got 4"),
        (lambda: torch.nn.Linear(3, 6), "decoder: expected 5 outputs, .*, got 6"),
        (lambda: torch.nn.Linear(2, 5), "decoder: expected a .*(3 inputs|3\\]).*"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused_before_the_first_step(decoder, message, hidden):
    posterior = RelayPosterior(40, 3, groups=(2,))
    likelihood = GaussianLikelihood(5)
    if not hidden:
        with pytest.raises(ValueError, match=message):
            models.LatentModel(posterior, decoder(), likelihood)
    model = models.LatentModel(posterior, torch.nn.Linear(3, 5), likelihood)
    model.decoder = Hidden(decoder()) if hidden else decoder()
    before, x = posterior.rows.detach().clone(), torch.zeros(40, 5)
    state = torch.get_rng_state()
    for call in (
        lambda: fit(model, x, epochs=1, progress=False),
        lambda: infer(model, x),
        lambda: impute(model, x),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(posterior.rows, before)
    assert model.decoder.training
