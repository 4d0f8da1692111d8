import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rvi_fast import RowLayout, reference, relay_sample, testing
from rvi_fast.ops import ops
from rvi_fast.testing import assert_close, cotangents

FORMS = ("linear", "cluster", "mixture")
KEYED = tuple(case for case in testing.RelaySampleContract.cases if case.keyed)
LAYOUT = RowLayout.resolve(3, (3, 2))


class TestContract(testing.RelaySampleContract):
    implementations = testing.installed()


def tables(layout=LAYOUT, num_data=5, dtype=torch.float64, ties=False):
    rows, relays = testing.make_tables(layout, num_data, dtype, ties=ties)
    return rows.requires_grad_(), relays.requires_grad_()


def gradients(sample, rows, relays):
    """Gradients under random cotangents; relays get zeros where there are none."""
    found = torch.autograd.grad(sample, (rows, relays), cotangents(sample), allow_unused=True)
    return [torch.zeros_like(relays) if grad is None else grad for grad in found]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("groups", "top"), [((5, 9), 0.5), ((5, 9), 1.0), ((1,), 1), ((), 0.5)])
@pytest.mark.parametrize("ties", [False, True])
def test_hand_written_backward_equals_autograd(form, groups, top, ties):
    for latent_dim, num_samples, size in itertools.product((1, 7, 64), (1, 3), (0, 11)):
        layout = RowLayout.resolve(latent_dim, groups, top, form)
        rows, relays = tables(layout, num_data=6, ties=ties)
        index = torch.arange(size) * 5 % 6  # 11 rows out of 6: all but one stand twice
        options = {"layout": layout, "num_samples": num_samples}
        expected = reference.relay_sample(rows, relays, index, torch.tensor([3]), **options)
        got = relay_sample(rows, relays, index, 3, **options)
        assert_close(got, expected)
        assert_close(gradients(got, rows, relays), gradients(expected, rows, relays))


NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, 5e-324, -1e-310]


def rank(number, position):
    return (0, 0.0, position) if math.isnan(number) else (1, -abs(number), position)


@pytest.mark.parametrize("numbers", [NUMBERS, [0.0, -0.0, 0.5, -0.5, 1.0]])
def test_selection_equals_the_definition(numbers):
    choice = torch.randint(len(numbers), (200, 13), generator=torch.Generator().manual_seed(0))
    coefficients = torch.tensor(numbers, dtype=torch.float64)[choice]
    for kept in (1, 4, 12, 13):
        marks = reference.select(coefficients, kept)
        for row, mark in zip(coefficients.tolist(), marks, strict=True):
            order = sorted(range(13), key=lambda k: rank(row[k], k))
            assert mark.nonzero().flatten().tolist() == sorted(order[:kept])


def test_ties_go_to_the_lowest_index():
    assert reference.select(torch.tensor([1.0, -2.0, 2.0, -0.0, 0.0]), 1).tolist() == [
        0,
        1,
        0,
        0,
        0,
    ]
    assert reference.select(torch.tensor([-0.0, 0.0, 0.0]), 2).tolist() == [True, True, False]


@pytest.mark.parametrize("form", FORMS)
def test_first_and_second_derivatives_pass_gradcheck(form):
    layout = RowLayout.resolve(3, (3, 2), 0.5, form)

    def sample(rows, relays):
        return tuple(relay_sample(rows, relays, torch.tensor([1, 2, 1]), 7, layout=layout))

    inputs = tables(layout, num_data=3)
    assert torch.autograd.gradcheck(sample, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(sample, inputs, fast_mode=True)


@pytest.mark.parametrize("function", testing.RelaySampleContract.functions)
@pytest.mark.parametrize("case", testing.RelaySampleContract.cases[1:3] + KEYED, ids=str)
@pytest.mark.parametrize("transform", [torch.clone, testing.transposed])
def test_registration_passes_opcheck(function, case, transform):
    contract = testing.RelaySampleContract()
    arguments = contract.arguments(function, case, transform)
    torch.library.opcheck(getattr(ops, function), arguments)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("backend", "sizes"), [("inductor", (3, 5)), ("aot_eager", (3, 5, 1, 0))])
def test_compiled_equals_eager_at_every_batch_size(sparse, backend, sizes):
    rows, relays = tables(dtype=torch.float32)
    options = {"layout": LAYOUT, "num_samples": 2, "sparse": sparse}
    compiled = torch.compile(relay_sample, fullgraph=True, backend=backend)
    for size in sizes:
        index = torch.arange(size)
        results = [f(rows, relays, index, 7, **options) for f in (compiled, relay_sample)]
        assert_close(*results, rtol=1e-6)
        grads = [[g.to_dense() for g in gradients(r, rows, relays)] for r in results]
        assert_close(*grads, rtol=1e-6)


def test_function_transforms_equal_autograd():
    rows, relays = tables()
    several = torch.stack([rows.detach(), 2 * rows.detach()])
    index = torch.tensor([4, 0, 4])

    def loss(rows):
        z, kl = relay_sample(rows, relays, index, 7, layout=LAYOUT)
        return z.square().sum() + kl.sum()

    def slow(function):
        return torch.stack([function(table) for table in several])

    def grad(table):
        return torch.autograd.grad(loss(table.requires_grad_()), table)[0]

    transforms = torch.func
    assert_close([transforms.grad(loss)(rows)], [grad(rows)])
    assert_close([transforms.vmap(loss)(several)], [slow(loss)])
    assert_close([transforms.vmap(transforms.grad(loss))(several)], [slow(grad)])
    assert_close([transforms.jacrev(transforms.vmap(loss))(several)[0, 0]], [grad(rows)])


def test_sparse_gradient_equals_the_dense_one():
    rows, relays = tables()
    index = torch.tensor([4, 0, 4], dtype=torch.int32)
    sparse, dense = (
        gradients(relay_sample(rows, relays, index, 7, layout=LAYOUT, sparse=s), rows, relays)[0]
        for s in (True, False)
    )
    assert sparse.is_sparse
    assert not dense.is_sparse
    assert_close([sparse.to_dense()], [dense])


def test_sample_of_a_row_does_not_depend_on_its_batch():
    rows, relays = tables(num_data=100)
    everything = relay_sample(rows, relays, torch.arange(100), 7, layout=LAYOUT, num_samples=3)
    index = torch.tensor([70, 3, 70])
    few = relay_sample(rows, relays, index, torch.tensor([7]), layout=LAYOUT)
    assert_close(few, [everything.z[0, index], everything.kl[index]])


def test_gradients_take_the_noise_of_the_named_rows():
    rows, relays = tables(num_data=9)
    part = rows.detach()[4:].clone().requires_grad_()
    local, key = torch.tensor([4, 0, 4]), torch.tensor([8, 4, 8], dtype=torch.int32)
    named = relay_sample(part, relays, local, 7, layout=LAYOUT, noise_index=key)
    whole = relay_sample(rows, relays, local + 4, 7, layout=LAYOUT)
    assert torch.equal(named.z, whole.z)
    got, expected = gradients(named, part, relays), gradients(whole, rows, relays)
    assert torch.equal(got[0], expected[0][4:])
    assert torch.equal(got[1], expected[1])

    def sample(rows, relays):
        return tuple(relay_sample(rows, relays, local, 7, layout=LAYOUT, noise_index=key))

    assert torch.autograd.gradgradcheck(sample, (part, relays), fast_mode=True)
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    assert_close(compiled(part, relays), sample(part, relays))
    several = torch.stack([part.detach(), 2 * part.detach()])
    mapped = torch.func.vmap(sample, (0, None))(several, relays)
    assert_close([m[1] for m in mapped], sample(several[1], relays))


@pytest.mark.parametrize("log_std", [-1e30, -200.0, 45.0, 200.0, 1e30, math.inf])
def test_extreme_log_std_gives_finite_values_and_gradients(log_std):
    rows, relays = tables(dtype=torch.float32)
    with torch.no_grad():
        rows[:, LAYOUT.log_std_slice] = log_std
    sample = relay_sample(rows, relays, torch.arange(5), 7, layout=LAYOUT)
    expected = reference.relay_sample(
        rows, relays, torch.arange(5), torch.tensor([7]), layout=LAYOUT
    )
    results = [(*each, *gradients(each, rows, relays)) for each in (sample, expected)]
    assert all(tensor.isfinite().all() for tensor in results[0])
    assert_close(*results, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": torch.tensor([0, 5])}, IndexError, "index: .* 0 to 4, got 5"),
        ({"index": torch.tensor([0, -1])}, IndexError, "index: .* 0 to 4, got -1"),
        ({"index": torch.tensor([0.0])}, TypeError, "index: .*int64, got torch.float32"),
        ({"index": torch.tensor([True])}, TypeError, "index: .*int64, got torch.bool"),
        ({"index": torch.tensor([[0]])}, IndexError, r"index: expected shape \[B\], got \[1, 1\]"),
        ({"index": [0]}, TypeError, "index: expected a torch.Tensor, got list"),
        ({"index": torch.tensor([0], device="meta")}, ValueError, "index: .*on cpu, got .*meta"),
        ({"rows": torch.zeros(5, 3)}, ValueError, r"rows: expected shape \[N, 16\], got \[5, 3\]"),
        ({"rows": torch.zeros(5, 16).long()}, TypeError, "rows: expected floating point"),
        ({"relays": torch.zeros(5, 4)}, ValueError, r"relays: expected shape \[5, 3\]"),
        ({"relays": torch.zeros(5, 3)}, TypeError, "relays: .*float64, got torch.float32"),
        ({"noise": torch.zeros(2, 3)}, ValueError, r"noise: expected shape \[1, 3\]"),
        ({"noise": torch.zeros(1, 3).requires_grad_()}, ValueError, "noise: expected a constant"),
        ({"noise_index": torch.zeros(1)}, TypeError, "noise_index: .*int64, got torch.float32"),
        ({"noise_index": torch.tensor([0, 1])}, ValueError, r"noise_index: .* \[1\], got \[2\]"),
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer >= 1, got 0"),
        ({"seed": 1.5}, TypeError, "seed: expected an int"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, TypeError, r"seed: .*got torch.int64 \[2\]"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    rows, relays = tables()
    call = {"rows": rows, "relays": relays, "index": torch.tensor([0]), "layout": LAYOUT} | change
    with pytest.raises(error, match=message):
        relay_sample(**call)


@pytest.mark.parametrize("backward", [False, True])
def test_the_clamp_of_the_reference_passes_no_gradient_beyond_its_limits(backward):
    """By hand, without another implementation to compare with; the limits themselves are inside."""
    limit = reference.LOG_STD_LIMIT
    values = torch.tensor([[-limit - 1, -limit, -limit + 1, 0, 1, limit - 1, limit, limit + 1]])
    values = values.double()
    rows = torch.cat((torch.zeros_like(values), values), 1).requires_grad_()
    relays, index = torch.zeros(0, 8).double(), torch.tensor([0])
    layout, noise = ([], [], "linear", 1), torch.zeros(1, 1, 8).double()
    fixed = (relays, index, torch.tensor(0), noise)
    z, kl, bits, mean = reference.relay_sample_fwd(rows, *fixed, *layout)
    if backward:
        fixed = (*fixed, bits, mean, *layout[:3], True, False)
        grads = (torch.zeros_like(z), torch.ones_like(kl))
        grad, _ = reference.relay_sample_bwd(*grads, rows.detach(), *fixed)
    else:
        (grad,) = torch.autograd.grad(kl.sum(), rows)
    expected = (2 * values).exp() - 1
    expected[:, [0, -1]] = 0
    torch.testing.assert_close(grad[:, 8:], expected)


class Made(TorchDispatchMode):
    """Names and dtypes of the tensors of zeros that torch makes within it."""

    def __init__(self):
        super().__init__()
        self.zeros = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **kwargs or {})
        if "zeros" in function._schema.name:
            self.zeros.append(given.dtype)
        return given


@pytest.mark.parametrize("used", [("z",), ("kl",), ("z", "kl")])
def test_a_backward_pass_makes_zeros_for_nothing_but_a_result_that_is_not_used(used):
    rows, relays = tables()
    index = torch.tensor([4, 0, 2])

    def loss(z, kl):
        given = {"z": z, "kl": kl}
        return sum(given[name].square().sum() for name in used)

    options = {"layout": LAYOUT, "num_samples": 2}
    expected = loss(*reference.relay_sample(rows, relays, index, torch.tensor([3]), **options))
    found = loss(*relay_sample(rows, relays, index, 3, sparse=True, **options))
    wanted = torch.autograd.grad(expected, (rows, relays), allow_unused=True)
    with Made() as made:
        grad_rows, grad_relays = torch.autograd.grad(found, (rows, relays))
    assert len(made.zeros) == 2 - len(used)
    assert_close((grad_rows.to_dense(), grad_relays), wanted)


class Unused(torch.autograd.Function):
    """Gives its first argument, and no gradient to the others."""

    @staticmethod
    def forward(ctx, value, *_):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def test_results_that_get_no_gradient_give_none():
    rows, relays = tables()
    value = torch.ones((), requires_grad=True)
    sample = relay_sample(rows, relays, torch.tensor([4, 0, 2]), layout=LAYOUT)
    Unused.apply(value, *sample).backward()
    assert value.grad == 1.0
    assert rows.grad is None
    assert relays.grad is None
