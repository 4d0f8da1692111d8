"""The ops under the law of zeros and ones; the contracts of both hold its cases too."""

import math

import pytest
import torch
from torch.nn.functional import linear

from rvi_fast import (
    bernoulli_log_likelihood,
    linear_bernoulli_log_likelihood,
    pack_mask,
    reference,
)
from rvi_fast.testing import assert_close, cotangents

B, D, S, H = 4, 5, 2, 3


def arguments():
    """x, logits, mask with every third entry missing and a row without any entry."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(B, D, generator=generator) < 0.4).double()
    logits = 3 * torch.randn(S, B, D, generator=generator, dtype=torch.float64)
    mask = (torch.arange(B * D) % 3 > 0).reshape(B, D)
    mask[0] = False
    return x, logits.requires_grad_(), mask


def layer():
    generator = torch.Generator().manual_seed(1)
    shapes = (S, B, H), (D, H), (D,)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def test_value_equals_torch_distributions_however_the_mask_is_told():
    x, logits, mask = arguments()
    expected = (torch.distributions.Bernoulli(logits=logits).log_prob(x) * mask).sum(-1)
    assert not expected[:, 0].any()
    assert_close([bernoulli_log_likelihood(x, logits, mask)], [expected])
    assert_close([bernoulli_log_likelihood(x, logits, pack_mask(mask))], [expected])
    assert_close([bernoulli_log_likelihood(x.masked_fill(~mask, math.nan), logits)], [expected])
    assert_close([bernoulli_log_likelihood(x, logits[0], mask)], [expected[0]])


def test_pixels_of_0_and_255_are_zeros_and_ones():
    x, logits, mask = arguments()
    pixels = (255 * x).to(torch.uint8)
    expected = bernoulli_log_likelihood(x, logits, mask)
    assert_close([bernoulli_log_likelihood(pixels, logits, mask)], [expected])


def test_hand_written_gradients_equal_autograd():
    x, logits, mask = arguments()
    inputs = x.requires_grad_(), logits
    expected = reference.log_likelihood(x, logits, None, mask, "bernoulli")
    got = bernoulli_log_likelihood(x, logits, mask)
    grads = [torch.autograd.grad(part, inputs, *cotangents([part])) for part in (got, expected)]
    assert_close(*grads)
    (grad,) = cotangents([expected])
    by_hand, none = reference.log_likelihood_bwd(
        grad, x, logits, None, mask, "bernoulli", True, True
    )
    assert_close([by_hand], [grads[1][1]])
    assert none.numel() == 0


def test_derivatives_by_everything_pass_gradcheck_twice():
    x, logits, mask = arguments()

    def plain(x, logits):
        return bernoulli_log_likelihood(x, logits, mask)

    def fused(x, *layer):
        return linear_bernoulli_log_likelihood(*layer, x, mask)

    for function, inputs in ((plain, (x, logits)), (fused, (x, *layer()))):
        inputs[0].requires_grad_()
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_last_layer_and_law_equal_the_two_parts():
    x, _, mask = arguments()
    parameters = layer()
    results = (
        linear_bernoulli_log_likelihood(*parameters, x, mask),
        bernoulli_log_likelihood(x, linear(*parameters), mask),
    )
    assert_close(results[:1], results[1:])
    grads = [torch.autograd.grad(part, parameters, *cotangents([part])) for part in results]
    assert_close(*grads)
    assert_close([linear_bernoulli_log_likelihood(parameters[0][0], *parameters[1:], x, mask)],
                 [results[0][0]])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_logits_neither_overflow_nor_lose_what_is_left(dtype):
    far = torch.tensor([[-1e4, -90.0, -30.0, 30.0, 90.0, 1e4]], dtype=dtype)
    for x in (torch.zeros_like(far), torch.ones_like(far)):
        logits = far.clone().requires_grad_()
        value = bernoulli_log_likelihood(x.T, logits.T)
        value.sum().backward()
        wrong = torch.where((far > 0) == (x > 0), 0.0, far.abs())
        torch.testing.assert_close(value[None].detach(), -wrong, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(logits.grad, x - (far > 0).to(dtype), rtol=0, atol=1e-12)


def test_compiled_equals_eager():
    x, logits, mask = arguments()
    compiled = torch.compile(bernoulli_log_likelihood, fullgraph=True, backend="aot_eager")
    results = [function(x, logits, mask) for function in (compiled, bernoulli_log_likelihood)]
    assert_close(results[:1], results[1:])
    assert_close(*(torch.autograd.grad(part, logits, *cotangents([part])) for part in results))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 5).long()}, TypeError, "x: expected floating point or uint8"),
        ({"logits": torch.zeros(4, 6)}, ValueError, r"logits: expected shape \[4, 5\], got"),
        ({"logits": torch.zeros(4, 5).long()}, TypeError, "logits: expected floating point"),
        ({"mask": torch.ones(4, 5)}, TypeError, "mask: expected dtype bool"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"x": torch.zeros(4, 5), "logits": torch.zeros(4, 5)} | change
    with pytest.raises(error, match=message):
        bernoulli_log_likelihood(**call)


def test_a_scale_is_refused_where_the_law_has_none():
    x, logits, _ = arguments()
    with pytest.raises(ValueError, match="scale: expected None for the law 'bernoulli'"):
        torch.ops.rvi_fast.log_likelihood_fwd(x, logits, torch.ones(()), None, "bernoulli")
    with pytest.raises(TypeError, match=r"scale: expected a torch\.Tensor, got NoneType"):
        torch.ops.rvi_fast.log_likelihood_fwd(x, logits, None, None, "gaussian")
    with pytest.raises(ValueError, match="law: expected one of gaussian, bernoulli, got 'beta'"):
        torch.ops.rvi_fast.log_likelihood_fwd(x, logits, None, None, "beta")
