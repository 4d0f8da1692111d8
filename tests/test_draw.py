"""What a training step and inference ask of a posterior, whichever it is."""

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import EncoderPosterior, RelayPosterior, fit, infer, models
from rvi_fast.posteriors.base import as_posterior

N, D, T = 23, 4, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([4, 0, 19, 7])
SEED = torch.tensor([5])


def posterior_of(kind, **options):
    generator = torch.Generator().manual_seed(1)
    if kind == "relay":
        return RelayPosterior(N, T, groups=(3, 5), generator=generator, **options).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return EncoderPosterior(nn.Linear(D, 2 * T), N, D, T).double()


@pytest.mark.parametrize("kind", ["relay", "encoder"])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_draw_and_its_pullback_are_forward_and_backward(kind, keyed, given):
    generator = torch.Generator().manual_seed(3)
    posterior, x = posterior_of(kind), X[INDEX].double()
    grads = torch.randn(len(INDEX), T + 1, generator=generator, dtype=torch.float64)
    keys = torch.tensor([11, 2, 2, 7]) if keyed else None
    noise = torch.randn(1, len(INDEX), T, generator=generator).double() if given else None
    data = () if posterior.owns_rows else (x,)
    index = INDEX
    options = {"noise": None if noise is None else noise[0], "seed": SEED}
    if posterior.owns_rows:
        options["noise_index"] = None if given else keys
    elif keyed:
        index = keys
    z, kl = posterior(index, *data, **options)
    torch.autograd.backward((z, kl), (grads[:, :T], grads[:, T]))
    expected = {name: p.grad for name, p in posterior.named_parameters()}
    posterior.zero_grad()
    drawn = posterior.draw(INDEX, SEED, None if given else keys, x=x, noise=noise)
    assert not drawn.z.requires_grad
    assert torch.equal(drawn.z, z)
    assert torch.equal(drawn.kl, kl)
    rows = drawn.pullback(grads[:, :T], grads[:, T])
    if posterior.owns_rows:
        torch.testing.assert_close(rows, expected.pop("rows")[INDEX])
    for parameter in posterior.shared_parameters():
        name = next(n for n, p in posterior.named_parameters() if p is parameter)
        torch.testing.assert_close(parameter.grad, expected.pop(name))
    assert not expected


@pytest.mark.parametrize("kind", ["relay", "encoder"])
def test_what_does_not_learn_gets_no_gradient(kind):
    posterior = posterior_of(kind)
    z, kl, pullback = posterior.draw(INDEX, SEED, x=X[INDEX].double(), learn=False)
    pullback(torch.ones_like(z), torch.ones_like(kl))
    assert all(parameter.grad is None for parameter in posterior.parameters())


def test_rows_are_brought_up_to_date_before_they_are_drawn_from():
    posterior = posterior_of("relay")
    optimizer = rvi_fast.optim.RowAdam(posterior, lr=0.1)
    optimizer.step_batch(torch.tensor([4, 0]), torch.ones(2, posterior.layout.width).double())
    for _ in range(3):
        optimizer.step_batch(torch.tensor([5]), torch.ones(1, posterior.layout.width).double())
    drawn = posterior.draw(INDEX, SEED)
    assert torch.equal(drawn.z, posterior(INDEX, seed=SEED).z)
    optimizer.detach()


class Own(nn.Module):
    """A posterior of somebody's own, that knows nothing of the package's base class."""

    amortized = True

    def __init__(self):
        super().__init__()
        self.inner = EncoderPosterior(nn.Linear(D, 2 * T), N, D, T)
        self.num_data, self.latent_dim = N, T

    def forward(self, index, x, mask=None, *, seed=None):
        return self.inner(index, x, mask, seed=seed)

    def of(self, x, mask=None):
        return self.inner.of(x, mask)


def test_a_posterior_of_ones_own_trains_as_the_one_in_it(tmp_path):
    histories, posteriors = [], []
    for wrap in (False, True):
        torch.manual_seed(0)
        own = Own()
        model = models.LatentModel(
            own if wrap else own.inner, nn.Linear(T, D), rvi_fast.GaussianLikelihood(D)
        )
        assert model.amortized
        options = {"epochs": 4, "batch_size": 8, "progress": False, "resume": True}
        fit(model, X, run_dir=tmp_path / str(wrap), **options | {"epochs": 2})
        histories.append(fit(model, X, run_dir=tmp_path / str(wrap), **options))
        posteriors.append(infer(model, X).mean())
    assert histories[0] == histories[1]
    assert torch.equal(*posteriors)


def test_a_module_without_amortized_is_taken_to_own_rows():
    class Rows(nn.Module):
        num_data = N

        def forward(self, index, *, seed=None):
            return torch.zeros(len(index), T), torch.zeros(len(index))

    model = models.LatentModel(Rows(), nn.Linear(T, D), rvi_fast.GaussianLikelihood(D))
    assert model(INDEX, X[INDEX]).loss.isfinite()
    assert as_posterior(model.posterior).owns_rows
    assert not model.amortized
