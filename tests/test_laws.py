"""The two likelihood ops under every law there is; the contracts of both hold their cases too."""

import math

import pytest
import torch
from torch.nn.functional import linear

import rvi_fast
from rvi_fast import pack_mask, reference
from rvi_fast.ops import ops
from rvi_fast.testing import assert_close, cotangents

LAWS = reference.laws.LAWS
B, D, S, H = 4, 5, 2, 3


@pytest.fixture(params=LAWS)
def law(request):
    return request.param


def arguments(law):
    """x, outputs, scales (none or one per feature); a third of the entries and row 0 are missing."""
    generator = torch.Generator().manual_seed(0)
    x, outputs = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, D), (S, B, D))
    )
    mask = (torch.arange(B * D) % 3 > 0).reshape(B, D)
    mask[0] = False
    outputs.requires_grad_()
    if not LAWS[law].scaled:
        return (x > 0.0).double(), outputs, (), mask
    scale = torch.rand(D, generator=generator, dtype=torch.float64) + 0.5
    return x, outputs, (scale.requires_grad_(),), mask


def layer():
    generator = torch.Generator().manual_seed(1)
    shapes = (S, B, H), (D, H), (D,)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def doors(law):
    """The public functions of a law."""
    names = f"{law}_log_likelihood", f"linear_{law}_log_likelihood"
    return [getattr(rvi_fast, name) for name in names]


def test_a_mask_may_be_told_in_three_ways(law):
    (function, _), (x, outputs, scales, mask) = doors(law), arguments(law)
    expected = function(x, outputs, *scales, mask)
    assert not expected[:, 0].any()
    assert expected[:, 1:].all()
    assert_close([function(x, outputs, *scales, pack_mask(mask))], [expected])
    assert_close([function(x.masked_fill(~mask, math.nan), outputs, *scales)], [expected])
    assert_close([function(x, outputs[0], *scales, mask)], [expected[0]])


def test_pixels_count_as_fractions_of_255(law):
    (function, _), (_, outputs, scales, mask) = doors(law), arguments(law)
    pixels = torch.arange(B * D, dtype=torch.uint8).reshape(B, D) * 13
    expected = function(pixels.double() / 255, outputs, *scales, mask)
    assert_close([function(pixels, outputs, *scales, mask)], [expected])


def test_hand_written_gradients_equal_autograd(law):
    (function, _), (x, outputs, scales, mask) = doors(law), arguments(law)
    inputs = x.requires_grad_(), outputs, *scales
    scale = scales[0] if scales else None
    expected = reference.log_likelihood(x, outputs, scale, mask, law)
    got = function(x, outputs, *scales, mask)
    grads = [torch.autograd.grad(part, inputs, *cotangents([part])) for part in (got, expected)]
    assert_close(*grads)
    (grad,) = cotangents([expected])
    by_hand = reference.log_likelihood_bwd(grad, x, outputs, scale, mask, law, True, True)
    assert_close(by_hand[: 1 + len(scales)], grads[1][1:])
    assert scales or by_hand[1].numel() == 0


def test_derivatives_by_everything_pass_gradcheck_twice(law):
    (plain, fused), (x, outputs, scales, mask) = doors(law), arguments(law)

    def of_layer(x, *inputs):
        return fused(*inputs[:3], x, *inputs[3:], mask)

    def of_outputs(x, *inputs):
        return plain(x, *inputs, mask)

    x.requires_grad_()
    for function, inputs in ((of_outputs, [outputs]), (of_layer, layer())):
        assert torch.autograd.gradcheck(function, (x, *inputs, *scales), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (x, *inputs, *scales), fast_mode=True)


def test_last_layer_and_law_equal_the_two_parts(law):
    (plain, fused), (x, _, scales, mask) = doors(law), arguments(law)
    parameters = layer()
    results = (
        fused(*parameters, x, *scales, mask),
        plain(x, linear(*parameters), *scales, mask),
    )
    assert_close(results[:1], results[1:])
    needed = *parameters, *scales
    assert_close(*(torch.autograd.grad(part, needed, *cotangents([part])) for part in results))
    one = fused(parameters[0][0], *parameters[1:], x, *scales, mask)
    assert_close([one], [results[0][0]])


def test_compiled_equals_eager(law):
    (function, _), (x, outputs, scales, mask) = doors(law), arguments(law)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [each(x, outputs, *scales, mask) for each in (compiled, function)]
    assert_close(results[:1], results[1:])
    needed = outputs, *scales
    assert_close(*(torch.autograd.grad(part, needed, *cotangents([part])) for part in results))


@pytest.mark.parametrize("function", range(2))
def test_bad_arguments_are_named(law, function):
    door, (x, outputs, scales, mask) = doors(law)[function], arguments(law)

    def call(x=x, outputs=outputs, scales=scales, mask=mask):
        given = (x, outputs) if function == 0 else (outputs, torch.ones(D, D), None, x)
        return door(*given, *scales, mask)

    name = list(door.__annotations__)[(1, 0)[function]]
    for error, message, change in (
        (TypeError, "x: expected floating point or uint8", {"x": x.long()}),
        (TypeError, f"{name}: expected floating point", {"outputs": outputs.long()}),
        (ValueError, f"{name}: expected shape", {"outputs": outputs[:, :3]}),
        (TypeError, "mask: expected dtype bool", {"mask": mask.double()}),
        (ValueError, r"scale: expected shape .*, got \[4\]", {"scales": (torch.ones(4),)}),
        (ValueError, r"scale: expected a finite number > 0, got 0\.0", {"scales": (0.0,)}),
        (TypeError, "scale: expected a number, got None", {"scales": (None,)}),
    ):
        if scales or "scales" not in change:
            with pytest.raises(error, match=message):
                call(**change)


def test_a_scale_is_refused_where_the_law_has_none_and_missed_where_it_has_one(law):
    x, outputs, scales, _ = arguments(law)
    if scales:
        error, message, scale = TypeError, r"scale: expected a torch\.Tensor, got NoneType", None
    else:
        error, message = ValueError, f"scale: expected None for the law '{law}'"
        scale = torch.ones(())
    with pytest.raises(error, match=message):
        ops.log_likelihood_fwd(x, outputs, scale, None, law)


def test_an_unknown_law_is_refused_with_the_names_of_all():
    x, outputs, _, _ = arguments("bernoulli")
    with pytest.raises(ValueError, match=f"law: expected one of {', '.join(LAWS)}, got 'beta'"):
        ops.log_likelihood_fwd(x, outputs, None, None, "beta")


def test_every_law_is_known_to_the_compiled_part_and_to_models(law):
    cpp = pytest.importorskip("rvi_fast.cpp", reason="the C++ part is not built")
    assert law in cpp._C.LAWS
    model = rvi_fast.models.rvi(9, D, latent_dim=2, groups=(2,), likelihood=law)
    assert model.law.law == law
    assert model.law.fused
