import itertools
import math

import pytest
import torch

from rvi_fast import gaussian_log_likelihood, pack_mask, reference, testing
from rvi_fast.ops import ops
from rvi_fast.testing import assert_close, cotangents

SHAPES = {"scalar": (), "one": (1,), "feature": (5,), "entry": (4, 5)}


class TestContract(testing.LogLikelihoodContract):
    implementations = testing.installed()


def arguments(scale="feature", masked=False, num_samples=2, dtype=torch.float64, batch=4):
    """x, mean, scale, mask with every third entry missing and a row without any entry."""
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[scale] if scale != "entry" else (batch, 5)
    x, mean, scale = (
        torch.randn(size, generator=generator, dtype=dtype)
        for size in ((batch, 5), (num_samples, batch, 5), shape)
    )
    mask = (torch.arange(batch * 5) % 3 > 0).reshape(batch, 5)
    mask[:1] = False
    x = x if masked else x.masked_fill(~mask, math.nan)
    scale = scale.abs() + 0.5
    return x, mean.requires_grad_(), scale.requires_grad_(), mask if masked else None


def gradients(log_prob, *inputs):
    return torch.autograd.grad(log_prob, inputs, *cotangents([log_prob]))


@pytest.mark.parametrize("scale", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_hand_written_backward_equals_autograd(scale, masked):
    for num_samples, batch in itertools.product((1, 3), (0, 4)):
        x, mean, spread, mask = arguments(scale, masked, num_samples, batch=batch)
        inputs = (mean, spread, x.requires_grad_())
        expected = reference.gaussian_log_likelihood(x, mean, spread, mask)
        got = gaussian_log_likelihood(x, mean, spread, mask)
        assert_close([got], [expected])
        assert_close(gradients(got, *inputs), gradients(expected, *inputs))


@pytest.mark.parametrize("scale", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_backward_of_the_reference_alone_equals_autograd(scale, masked):
    x, mean, spread, mask = arguments(scale, masked)
    log_prob = reference.gaussian_log_likelihood(x, mean, spread, mask)
    (grad,) = cotangents([log_prob])
    got = reference.log_likelihood_bwd(grad, x, mean, spread, mask, "gaussian", True, True)
    assert_close(got, torch.autograd.grad(log_prob, (mean, spread), grad))


def test_value_equals_torch_distributions():
    x, mean, scale, mask = arguments(masked=True)
    entries = torch.distributions.Normal(mean, scale).log_prob(x)
    expected = (entries * mask).sum(-1)
    assert_close([gaussian_log_likelihood(x, mean, scale, mask)], [expected])
    assert_close([gaussian_log_likelihood(x, mean[0], scale, mask)], [expected[0]])


@pytest.mark.parametrize("scale", SHAPES)
def test_first_and_second_derivatives_pass_gradcheck(scale):
    x, mean, scale, mask = arguments(scale, masked=True)

    def log_prob(x, mean, scale):
        return gaussian_log_likelihood(x, mean, scale, mask)

    inputs = (x.requires_grad_(), mean, scale)
    assert torch.autograd.gradcheck(log_prob, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(log_prob, inputs, fast_mode=True)
    for alone in itertools.product((False, True), repeat=3):
        if any(alone):
            some = [
                t.detach().requires_grad_(wanted) for t, wanted in zip(inputs, alone, strict=True)
            ]
            assert torch.autograd.gradgradcheck(log_prob, some, fast_mode=True)


@pytest.mark.parametrize("function", testing.LogLikelihoodContract.functions)
@pytest.mark.parametrize("case", testing.LogLikelihoodContract.cases[1:3], ids=str)
@pytest.mark.parametrize("transform", [torch.clone, testing.transposed])
def test_registration_passes_opcheck(function, case, transform):
    contract = testing.LogLikelihoodContract()
    arguments = contract.arguments(function, case, transform)
    torch.library.opcheck(getattr(ops, function), arguments)


@pytest.mark.parametrize(("backend", "sizes"), [("inductor", (4, 6)), ("aot_eager", (4, 6, 1, 0))])
def test_compiled_equals_eager_at_every_batch_size(backend, sizes):
    compiled = torch.compile(gaussian_log_likelihood, fullgraph=True, backend=backend)
    for batch in sizes:
        x, mean, scale, mask = arguments(dtype=torch.float32, batch=batch)
        x = testing.transposed(x)
        results = [f(x, mean, scale, mask) for f in (compiled, gaussian_log_likelihood)]
        assert_close(results[:1], results[1:], rtol=1e-6)
        grads = [gradients(result, mean, scale) for result in results]
        assert_close(*grads, rtol=1e-6)


def test_function_transforms_equal_autograd():
    x, mean, scale, mask = arguments(num_samples=3)

    def loss(mean):
        return gaussian_log_likelihood(x, mean, scale.detach(), mask).square().sum()

    expected = torch.stack([torch.autograd.grad(loss(one), one)[0] for one in mean])
    assert_close([torch.func.grad(loss)(mean)], [expected])
    assert_close([torch.func.vmap(torch.func.grad(loss))(mean)], [expected])
    jacobian = torch.func.jacrev(torch.func.vmap(loss))(mean.detach())
    assert_close([torch.einsum("iijk->ijk", jacobian)], [expected])


def test_autocast_output_of_a_decoder_is_taken_in_bfloat16():
    decoder = torch.nn.Linear(3, 5)
    x, _, scale, _ = arguments(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = decoder(torch.ones(4, 3))
        log_prob = gaussian_log_likelihood(x, mean, scale)
        assert (mean.dtype, log_prob.dtype) == (torch.bfloat16, torch.float32)
        log_prob.backward(*cotangents([log_prob]))
    expected = gaussian_log_likelihood(x, mean.double(), scale)
    assert_close([log_prob], [expected.float()], rtol=1e-6)
    assert decoder.weight.grad.isfinite().all()


def test_pixels_count_as_fractions_of_255():
    pixels = torch.arange(20, dtype=torch.uint8).reshape(4, 5) * 13
    _, mean, scale, _ = arguments()
    expected = gaussian_log_likelihood(pixels.double() / 255, mean, scale)
    assert_close([gaussian_log_likelihood(pixels, mean, scale)], [expected])


def test_row_without_observations_has_zero_likelihood_and_gradient():
    for masked in (False, True):
        x, mean, scale, mask = arguments("entry", masked)
        log_prob = gaussian_log_likelihood(x, mean, scale, mask)
        grad_mean, grad_scale = gradients(log_prob, mean, scale)
        for tensor in (log_prob[:, 0], grad_mean[:, 0], grad_scale[0]):
            assert not tensor.any()
        assert log_prob[:, 1:].all()


@pytest.mark.parametrize("implementation", testing.installed(), ids=lambda each: each.name)
@pytest.mark.parametrize("kind", ["feature", "entry"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_scale_where_nothing_is_observed_changes_no_gradient(implementation, kind, masked, bad):
    x, mean, scale, mask = (
        None if each is None else each.detach() for each in arguments(kind, masked)
    )
    never = torch.zeros(5, dtype=torch.bool)
    never[[1, 4]] = True
    if masked:
        mask &= ~never
    else:
        x[:, never] = math.nan
    scale[..., never] = 1.0
    grad = torch.randn(mean.shape[:2], dtype=torch.float64)
    function = implementation.namespace.log_likelihood_bwd
    expected = function(grad, x, mean, scale, mask, "gaussian", True, True)
    scale[..., never] = torch.tensor(bad, dtype=torch.float64)
    for got, right in zip(
        function(grad, x, mean, scale, mask, "gaussian", True, True), expected, strict=True
    ):
        assert torch.equal(got, right)


def test_nan_where_the_mask_says_observed_is_not_silent():
    x, mean, scale, mask = arguments(masked=True)
    x[1, 2] = x[0, 0] = math.nan  # [0, 0] is missing by the mask
    assert gaussian_log_likelihood(x, mean, scale, mask).isnan()[0].tolist() == [0, 1, 0, 0]
    with pytest.raises(ValueError, match="x: NaN at row 1, column 2, where the mask says observed"):
        gaussian_log_likelihood(x, mean, scale, mask, checked=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [0.0]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": torch.zeros(4, 5).long()}, TypeError, "x: expected floating point or uint8"),
        ({"x": torch.zeros(5)}, ValueError, r"x: expected shape \[B, D\], got \[5\]"),
        ({"mean": torch.zeros(4, 6)}, ValueError, r"mean: expected shape \[4, 5\], got \[4, 6\]"),
        ({"mean": torch.zeros(4, 5).long()}, TypeError, "mean: expected floating point"),
        ({"mean": torch.zeros(4, 5, device="meta")}, ValueError, "x: expected a tensor on meta"),
        ({"scale": torch.ones(4)}, ValueError, r"scale: expected shape .*, got \[4\]"),
        ({"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
        ({"scale": math.nan}, ValueError, "scale: expected a finite number > 0, got nan"),
        ({"scale": "wide"}, TypeError, "scale: expected a number, got 'wide'"),
        ({"scale": torch.zeros(5), "checked": True}, ValueError, "scale: expected positive"),
        (
            {"scale": torch.tensor(math.nan), "checked": True},
            ValueError,
            "scale: expected positive",
        ),
        (
            {"mask": torch.ones(4, 5)},
            TypeError,
            "mask: expected dtype bool, or int32 .*got torch.float32",
        ),
        ({"mask": torch.ones(5).bool()}, ValueError, r"mask: expected shape \[4, 5\], got \[5\]"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"x": torch.zeros(4, 5), "mean": torch.zeros(4, 5), "scale": 1.0} | change
    with pytest.raises(error, match=message):
        gaussian_log_likelihood(**call)


@pytest.mark.parametrize("num_features", [1, 31, 32, 33, 63, 64, 130])
def test_bits_of_a_mask_mean_the_same_as_the_mask(num_features):
    generator = torch.Generator().manual_seed(num_features)
    for dtype in (torch.float32, torch.float64):
        x, mean = torch.randn(2, 5, num_features, generator=generator, dtype=dtype)
        mask = torch.rand(5, num_features, generator=generator) < 0.6
        x = x.masked_fill(~mask & (x > 0), math.nan)
        mean.requires_grad_()
        bits = pack_mask(mask)
        assert (bits.dtype, bits.shape) == (torch.int32, (5, -(-num_features // 32)))
        results = [gaussian_log_likelihood(x, mean, 0.7, m, checked=True) for m in (mask, bits)]
        assert torch.equal(*results)
        assert torch.equal(*(gradients(result, mean)[0] for result in results))


def test_nan_where_the_bits_say_observed_is_not_silent():
    x, mean, scale, mask = arguments(masked=True)
    x[1, 2] = x[0, 0] = math.nan
    bits = pack_mask(mask)
    assert gaussian_log_likelihood(x, mean, scale, bits).isnan()[0].tolist() == [0, 1, 0, 0]
    with pytest.raises(ValueError, match="x: NaN at row 1, column 2, where the mask says observed"):
        gaussian_log_likelihood(x, mean, scale, bits, checked=True)


def test_masks_that_cannot_be_packed_are_refused():
    with pytest.raises(TypeError, match=r"mask: expected dtype bool, got torch\.float32"):
        pack_mask(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"mask: expected shape \[B, D\], got \[3\]"):
        pack_mask(torch.ones(3, dtype=torch.bool))
    x, mean, scale, _ = arguments()
    with pytest.raises(ValueError, match=r"mask: expected shape \[4, 1\], got \[4, 5\]"):
        gaussian_log_likelihood(x, mean, scale, torch.ones(4, 5, dtype=torch.int32))
