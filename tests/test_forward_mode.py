"""Forward-mode derivatives of the ops, and what torch.export writes down."""

import io

import pytest
import torch

import rvi_fast
from rvi_fast import (
    RowLayout,
    gaussian_log_likelihood,
    linear_gaussian_log_likelihood,
    relay_sample,
    testing,
)
from rvi_fast.testing import assert_close

INDEX = torch.tensor([1, 2, 1])


def normal(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def functions(form):
    """Functions of one tensor, through each of the ops, and where to differentiate them."""
    layout = RowLayout.resolve(3, (3, 2), 0.5, form)
    rows, relays = testing.make_tables(layout, 4)
    x = torch.tensor([[1.0, torch.nan], [0.5, 2.0]], dtype=torch.float64)
    hidden = normal(2, 3)

    def sample(rows, relays):
        z, kl = relay_sample(rows, relays, INDEX, 7, layout=layout)
        return z.square().sum() + kl.sum()

    return [
        (lambda rows: sample(rows, relays), rows),
        (lambda relays: sample(rows, relays), relays),
        (lambda mean: gaussian_log_likelihood(x, mean, mean.exp()).sum(), normal(2, 2)),
        (
            lambda w: linear_gaussian_log_likelihood(hidden, w, None, x, w[:, 0].exp()).sum(),
            normal(2, 3),
        ),
    ]


@pytest.mark.parametrize("form", ["linear", "cluster", "mixture"])
def test_every_mode_and_order_gives_the_same_derivatives(form):
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    for function, at in functions(form):
        first, second = jacrev(function)(at), jacrev(jacrev(function))(at)
        assert_close([jacfwd(function)(at)], [first], rtol=1e-10)
        for transform in (
            torch.func.hessian,
            lambda f: jacfwd(jacfwd(f)),
            lambda f: jacrev(jacfwd(f)),
        ):
            assert_close([transform(function)(at)], [second], rtol=1e-10)
        tangent = torch.ones_like(at)
        with torch.autograd.forward_ad.dual_level():
            dual = function(torch.autograd.forward_ad.make_dual(at, tangent))
            got = torch.autograd.forward_ad.unpack_dual(dual).tangent
        assert_close([got], [first.sum()], rtol=1e-10)


def test_compiled_forward_mode_equals_eager():
    function, at = functions("linear")[0]
    compiled = torch.compile(torch.func.jacfwd(function), fullgraph=True, backend="aot_eager")
    assert_close([compiled(at)], [torch.func.jacfwd(function)(at)])


def test_row_numbers_are_looked_at_within_transforms():
    layout = RowLayout.resolve(3, (3, 2))
    rows, relays = testing.make_tables(layout, 4)

    def of(index):
        return torch.func.jacfwd(lambda r: relay_sample(r, relays, index, 7, layout=layout).z)(rows)

    for wrong in (4, -1):
        with pytest.raises(
            IndexError, match=f"index: expected row numbers from 0 to 3, got {wrong}"
        ):
            torch.func.vmap(of)(torch.tensor([[1, 2], [0, wrong]]))


@pytest.mark.parametrize("whole", [False, True])
def test_named_tuples_survive_export_and_save(whole):
    model = rvi_fast.models.rvi(40, 5, latent_dim=4, hidden=(8,), groups=(6, 7))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, index, x):
            seed = torch.tensor([3])
            if whole:
                return self.model(index, x, seed=seed)
            return self.model.posterior(index, seed=seed)

    arguments = (INDEX, torch.zeros(3, 5))
    with torch.no_grad():
        expected, file = Module()(*arguments), io.BytesIO()
        torch.export.save(torch.export.export(Module(), arguments), file)
        file.seek(0)
        got = torch.export.load(file).module()(*arguments)
    assert type(got) is type(expected)
    assert_close(got, expected, rtol=1e-6)
