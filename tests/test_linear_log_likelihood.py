import contextlib
import itertools
import math

import pytest
import torch
from torch.nn.functional import linear

from rvi_fast import (
    gaussian_log_likelihood,
    linear_gaussian_log_likelihood,
    reference,
    testing,
)
from rvi_fast.ops import implementation, ops
from rvi_fast.testing import assert_close, cotangents

ops_of_cpu = implementation("cpu")
PATHS = [] if ops_of_cpu is reference else ops_of_cpu._C.cpu_paths()
SHAPES = {"scalar": (), "one": (1,), "feature": (5,), "entry": (4, 5)}


class TestContract(testing.LinearLogLikelihoodContract):
    implementations = testing.installed()


def arguments(scale="feature", masked=False, num_samples=2, dtype=torch.float64, batch=4):
    """hidden, weight, bias, x, scale and mask; a third of the entries and row 0 are missing."""
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[scale] if scale != "entry" else (batch, 5)
    hidden, weight, bias, x, scale = (
        torch.randn(size, generator=generator, dtype=dtype).requires_grad_()
        for size in ((num_samples, batch, 3), (5, 3), (5,), (batch, 5), shape)
    )
    mask = (torch.arange(batch * 5) % 3 > 0).reshape(batch, 5)
    mask[:1] = False
    x = x.detach() if masked else x.detach().masked_fill(~mask, math.nan)
    scale = (scale.detach().abs() + 0.5).requires_grad_()
    return hidden, weight, bias, x.requires_grad_(), scale, mask if masked else None


@contextlib.contextmanager
def cpu_path(path):
    before = ops_of_cpu.cpu_path()
    ops_of_cpu._C.set_cpu_path(path)
    try:
        yield
    finally:
        ops_of_cpu._C.set_cpu_path(before)


def gradients(log_prob, *inputs):
    return torch.autograd.grad(log_prob, inputs, *cotangents([log_prob]))


@pytest.mark.parametrize("scale", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients_equal_those_of_the_two_parts(scale, masked):
    for num_samples, batch in itertools.product((1, 3), (0, 4)):
        *inputs, mask = arguments(scale, masked, num_samples, batch=batch)
        hidden, weight, bias, x, spread = inputs
        expected = gaussian_log_likelihood(x, linear(hidden, weight, bias), spread, mask)
        got = linear_gaussian_log_likelihood(*inputs, mask)
        assert_close([got], [expected])
        assert_close(gradients(got, *inputs), gradients(expected, *inputs))
        without = linear_gaussian_log_likelihood(hidden, weight, None, x, spread, mask)
        expected = gaussian_log_likelihood(x, linear(hidden, weight), spread, mask)
        assert_close([without], [expected])
        others = (hidden, weight, x, spread)
        assert_close(gradients(without, *others), gradients(expected, *others))


def test_hidden_without_samples_is_taken_as_it_is():
    hidden, *others = arguments()
    got = linear_gaussian_log_likelihood(hidden[1], *others)
    assert_close([got], [linear_gaussian_log_likelihood(hidden, *others)[1]])
    number = linear_gaussian_log_likelihood(hidden[1], *others[:3], 0.5)
    tensor = torch.tensor(0.5, dtype=torch.float64)
    assert_close([number], [linear_gaussian_log_likelihood(hidden[1], *others[:3], tensor)])


@pytest.mark.parametrize("scale", SHAPES)
def test_first_and_second_derivatives_pass_gradcheck(scale):
    *inputs, mask = arguments(scale, masked=True)

    def log_prob(*inputs):
        return linear_gaussian_log_likelihood(*inputs, mask)

    assert torch.autograd.gradcheck(log_prob, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(log_prob, inputs, fast_mode=True)
    for alone in range(5):
        some = [t.detach().requires_grad_(i == alone) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(log_prob, some, fast_mode=True)
        assert torch.autograd.gradgradcheck(log_prob, some, fast_mode=True)


def test_derivatives_without_a_bias_pass_gradcheck():
    hidden, weight, _, x, scale, _ = arguments()

    def log_prob(hidden, weight, scale):
        return linear_gaussian_log_likelihood(hidden, weight, None, x.detach(), scale)

    assert torch.autograd.gradcheck(log_prob, (hidden, weight, scale), fast_mode=True)
    assert torch.autograd.gradgradcheck(log_prob, (hidden, weight, scale), fast_mode=True)


@pytest.mark.parametrize("function", testing.LinearLogLikelihoodContract.functions)
@pytest.mark.parametrize("case", testing.LinearLogLikelihoodContract.cases[1:3], ids=str)
@pytest.mark.parametrize("transform", [torch.clone, testing.transposed])
def test_registration_passes_opcheck(function, case, transform):
    contract = testing.LinearLogLikelihoodContract()
    arguments = contract.arguments(function, case, transform)
    torch.library.opcheck(getattr(ops, function), arguments)


@pytest.mark.parametrize(("backend", "sizes"), [("inductor", (4, 6)), ("aot_eager", (4, 6, 1, 0))])
def test_compiled_equals_eager_at_every_batch_size(backend, sizes):
    compiled = torch.compile(linear_gaussian_log_likelihood, fullgraph=True, backend=backend)
    for batch in sizes:
        hidden, weight, bias, x, scale, mask = arguments(dtype=torch.float32, batch=batch)
        x, needed = testing.transposed(x.detach()), (hidden, weight, bias, scale)
        results = [
            f(hidden, weight, bias, x, scale, mask)
            for f in (compiled, linear_gaussian_log_likelihood)
        ]
        assert_close(results[:1], results[1:], rtol=1e-6)
        assert_close(*(gradients(result, *needed) for result in results), rtol=1e-6)


def test_function_transforms_equal_autograd():
    hidden, *others = (None if t is None else t.detach() for t in arguments(num_samples=3))
    hidden = hidden.requires_grad_()

    def loss(hidden):
        return linear_gaussian_log_likelihood(hidden, *others).square().sum()

    expected = torch.stack([torch.autograd.grad(loss(one), one)[0] for one in hidden])
    assert_close([torch.func.grad(loss)(hidden)], [expected])
    assert_close([torch.func.vmap(torch.func.grad(loss))(hidden)], [expected])
    jacobian = torch.func.jacrev(torch.func.vmap(loss))(hidden.detach())
    assert_close([torch.einsum("iijk->ijk", jacobian)], [expected])


def test_autocast_does_not_reach_the_products():
    hidden, weight, bias, x, scale, _ = arguments(dtype=torch.float32)
    inputs = (hidden.detach().bfloat16().requires_grad_(), weight, bias, x, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = linear_gaussian_log_likelihood(*inputs)
        grads = gradients(log_prob, *inputs)
    plain = linear_gaussian_log_likelihood(inputs[0].float(), *inputs[1:])
    assert torch.equal(log_prob, plain)
    expected = gradients(plain, *inputs)
    assert [grad.dtype for grad in grads] == [each.dtype for each in inputs]
    assert all(map(torch.equal, grads, expected))


def test_pixels_count_as_fractions_of_255():
    pixels = torch.arange(20, dtype=torch.uint8).reshape(4, 5) * 13
    hidden, weight, bias, _, scale, _ = arguments()
    expected = linear_gaussian_log_likelihood(hidden, weight, bias, pixels.double() / 255, scale)
    got = linear_gaussian_log_likelihood(hidden, weight, bias, pixels, scale)
    assert_close([got], [expected])


def test_row_without_observations_has_zero_likelihood_and_gradient():
    for masked in (False, True):
        *inputs, mask = arguments("entry", masked)
        log_prob = linear_gaussian_log_likelihood(*inputs, mask)
        grad_hidden, grad_scale = gradients(log_prob, inputs[0], inputs[4])
        for tensor in (log_prob[:, 0], grad_hidden[:, 0], grad_scale[0]):
            assert not tensor.any()
        assert log_prob[:, 1:].all()


@pytest.mark.parametrize("implementation", testing.installed(), ids=lambda each: each.name)
@pytest.mark.parametrize("kind", ["feature", "entry"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_scale_where_nothing_is_observed_changes_no_gradient(implementation, kind, masked, bad):
    *inputs, mask = [None if each is None else each.detach() for each in arguments(kind, masked)]
    never = torch.zeros(5, dtype=torch.bool)
    never[[1, 4]] = True
    if masked:
        mask &= ~never
    else:
        inputs[3][:, never] = math.nan
    inputs[4][..., never] = 1.0
    grad = torch.randn(inputs[0].shape[:2], dtype=torch.float64)
    function = implementation.namespace.linear_log_likelihood_bwd
    expected = function(grad, *inputs, mask, "gaussian", True, True, True)
    inputs[4][..., never] = torch.tensor(bad, dtype=torch.float64)
    for got, right in zip(
        function(grad, *inputs, mask, "gaussian", True, True, True), expected, strict=True
    ):
        assert torch.equal(got, right)


def test_nan_where_the_mask_says_observed_is_not_silent():
    hidden, weight, bias, x, scale, mask = arguments(masked=True)
    x = x.detach()
    x[1, 2] = x[0, 0] = math.nan  # [0, 0] is missing by the mask
    inputs = (hidden, weight, bias, x, scale, mask)
    assert linear_gaussian_log_likelihood(*inputs).isnan()[0].tolist() == [0, 1, 0, 0]
    with pytest.raises(ValueError, match="x: NaN at row 1, column 2, where the mask says observed"):
        linear_gaussian_log_likelihood(*inputs, checked=True)


def large_inputs(batch, num_features=500, hidden_dim=20):
    generator = torch.Generator().manual_seed(batch)
    hidden, weight, bias, x, grad = (
        torch.randn(shape, generator=generator)
        for shape in (
            (2, batch, hidden_dim),
            (num_features, hidden_dim),
            (num_features,),
            (batch, num_features),
            (2, batch),
        )
    )
    return (
        grad,
        hidden,
        weight,
        bias,
        x,
        torch.rand(num_features, generator=generator) + 0.5,
        None,
        "gaussian",
    )


def test_means_as_a_whole_are_never_written():
    if ops_of_cpu is reference:
        pytest.skip("the reference writes them")
    grad, *inputs = large_inputs(300)
    for function, call in (
        (ops.linear_log_likelihood_fwd, inputs),
        (ops.linear_log_likelihood_bwd, (grad, *inputs, True, True, True)),
    ):
        with torch.profiler.profile(profile_memory=True) as profile:
            function(*call)
        allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
        assert allocated < inputs[3].nbytes


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_path_of_the_cpu_equals_the_reference(path, dtype):
    contract = testing.LinearLogLikelihoodContract()
    implementation = testing.Implementation(path, ops_of_cpu)
    with cpu_path(path):
        for function, case in itertools.product(contract.functions, contract.cases):
            inputs = contract.inputs(function, case, dtype)
            for need_hidden, need_linear, need_scale in itertools.product((True, False), repeat=3):
                needs = {
                    "need_hidden": need_hidden,
                    "need_linear": need_linear,
                    "need_scale": need_scale,
                }
                contract.check(implementation, function, inputs | needs)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("batch", [700, 5000])
def test_results_do_not_depend_on_the_number_of_threads(path, batch):
    inputs = large_inputs(batch, num_features=70)
    before = torch.get_num_threads()
    results = []
    try:
        with cpu_path(path):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(ops.linear_log_likelihood_bwd(*inputs, True, True, True))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(map(torch.equal, others, results[0]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": [0.0]}, TypeError, "hidden: expected a torch.Tensor, got list"),
        ({"hidden": torch.zeros(4, 3).long()}, TypeError, "hidden: expected floating point"),
        ({"hidden": torch.zeros(3)}, ValueError, r"hidden: expected shape \[B, H\] or .*got \[3\]"),
        (
            {"hidden": torch.zeros(6, 3)},
            ValueError,
            r"hidden: expected shape \[4, 3\], got \[6, 3\]",
        ),
        (
            {"weight": torch.zeros(5, 2)},
            ValueError,
            r"weight: expected shape \[5, 3\], got \[5, 2\]",
        ),
        ({"weight": torch.zeros(5, 3).long()}, TypeError, "weight: expected floating point"),
        ({"weight": torch.zeros(5, 3, device="meta")}, ValueError, "weight: expected a tensor on"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: expected shape \[5\], got \[4\]"),
        ({"bias": torch.zeros(5).double()}, TypeError, "bias: expected the dtype of weight"),
        ({"bias": 0.0}, TypeError, "bias: expected a torch.Tensor, got float"),
        ({"x": torch.zeros(4, 5).long()}, TypeError, "x: expected floating point or uint8"),
        ({"x": torch.zeros(5)}, ValueError, r"x: expected shape \[B, D\], got \[5\]"),
        ({"scale": torch.ones(4)}, ValueError, r"scale: expected shape .*, got \[4\]"),
        ({"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
        ({"mask": torch.ones(5).bool()}, ValueError, r"mask: expected shape \[4, 5\], got \[5\]"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {
        "hidden": torch.zeros(4, 3),
        "weight": torch.zeros(5, 3),
        "bias": None,
        "x": torch.zeros(4, 5),
        "scale": 1.0,
    } | change
    with pytest.raises(error, match=message):
        linear_gaussian_log_likelihood(**call)
