"""All ops: their schemas, which implementation serves which device, fakes and autograd.

An implementation is a namespace with the functions of `_SCHEMAS`, same names and signatures;
`rvi_fast.reference` is the first and defines what the others must return.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import reference
from ._op_checks import checked, layout_of
from .layout import RowLayout

_LAYOUT = "int[] groups, int[] kept, str form"
_LINEAR = "Tensor hidden, Tensor weight, Tensor? bias, Tensor x, Tensor scale, Tensor? mask"
_TABLES = "Tensor(a!) rows, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) row_step"
_SCHEMAS = {
    "relay_sample_fwd": f"(Tensor rows, Tensor relays, Tensor index, Tensor seed, Tensor? noise, "
    f"{_LAYOUT}, int num_samples, Tensor? noise_index=None) -> (Tensor, Tensor, Tensor, Tensor)",
    "relay_sample_bwd": f"(Tensor grad_z, Tensor grad_kl, Tensor rows, Tensor relays, Tensor index, "
    f"Tensor seed, Tensor? noise, Tensor bits, Tensor? mean, {_LAYOUT}, "
    "bool need_rows, bool need_relays, Tensor? noise_index=None) -> (Tensor, Tensor)",
    "gaussian_log_likelihood_fwd": "(Tensor x, Tensor mean, Tensor scale, Tensor? mask) -> Tensor",
    "gaussian_log_likelihood_bwd": "(Tensor grad_log_prob, Tensor x, Tensor mean, Tensor scale, "
    "Tensor? mask, bool need_mean, bool need_scale) -> (Tensor, Tensor)",
    "linear_gaussian_log_likelihood_fwd": f"({_LINEAR}) -> Tensor",
    "linear_gaussian_log_likelihood_bwd": f"(Tensor grad_log_prob, {_LINEAR}, bool need_hidden, "
    "bool need_linear, bool need_scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "row_adam_catch_up": f"({_TABLES}, Tensor index, Tensor clock, Tensor history, "
    "float beta1, float beta2, float eps) -> ()",
    "row_adam_step": f"({_TABLES}, Tensor index, Tensor grad, Tensor(e!) clock, Tensor(f!) history, "
    "Tensor lr, float beta1, float beta2, float eps, float weight_decay, str semantics) -> ()",
    "adam_step": "(Tensor(a!) params, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor grads, "
    "Tensor(d!) step, Tensor lr, float beta1, float beta2, float eps, float weight_decay) -> ()",
}


class FallbackWarning(UserWarning):
    """An implementation that could serve a device is not there; a slower one takes its place."""


def implementation(device_type: str) -> ModuleType:
    """The namespace that serves tensors on "cpu" or "cuda"."""
    return _serving(device_type)[0]


def unused(device_type: str) -> dict[str, str]:
    """Implementations that could serve the device and do not, each with the reason."""
    reason = _serving(device_type)[1]
    return {{"cpu": "C++", "cuda": "Triton"}[device_type]: reason} if reason else {}


@functools.cache
def _serving(device_type: str) -> tuple[ModuleType, str]:
    """What serves a device, and why that is the reference where it is."""
    found: ModuleType
    try:
        if device_type == "cpu":
            from . import cpp as found
        else:
            from . import kernels as found
    except (ImportError, ValueError) as error:  # not built, built for another version, no such path
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"rvi_fast: the plain torch reference serves {device_type} tensors, slowly: {reason}",
            FallbackWarning,
            stacklevel=2,
        )
        return reference, reason
    return found, ""


def check_rows_read(device: torch.device) -> None:
    """Raises what kernels on a GPU could only take down: a row number outside its table.

    Reads one number back, so it belongs where the device is waited for anyway.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return
    if implementation("cuda") is reference:  # which checks the numbers itself
        return
    error = implementation("cuda").row_error(device)
    if bool(error):
        error.zero_()
        raise IndexError("index: a batch held a row number outside its table; it was left out")


def _run(device_type: str, name: str, *args: Any) -> Any:
    # arguments are checked by each function of an implementation, see `_op_checks.checked`
    chosen = implementation(device_type)
    if chosen is not reference:
        function = getattr(chosen, name)
        if device_type == "cuda":  # a kernel is launched on the device that is current
            with torch.cuda.device(args[0].device):
                result = function(*args)
        else:
            result = function(*args)
        if result is not NotImplemented:
            return result
    with torch.autocast(device_type, enabled=False):
        return getattr(reference, name)(*args)


_library = torch.library.Library("rvi_fast", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    for _device in ("cpu", "cuda"):
        _library.impl(_name, functools.partial(_run, _device, _name), _device.upper())

ops = torch.ops.rvi_fast


# Fakes: shapes and dtypes of the results, for torch.compile and torch.export; they refuse what the
# ops refuse


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(f"rvi_fast::{name}")(checked(function, name))
        return function

    return register


@_fake("relay_sample_fwd")
def _(rows, relays, index, seed, noise, groups, kept, form, num_samples, noise_index=None):
    layout = layout_of(int(relays.shape[1]), tuple(groups), tuple(kept), form)
    z = rows.new_empty((num_samples, index.shape[0], relays.shape[1]))
    dtype = torch.promote_types(rows.dtype, torch.float32)
    kl = rows.new_empty(index.shape[0], dtype=dtype)
    bits = rows.new_empty((index.shape[0], layout.num_words), dtype=torch.int32)
    return z, kl, bits, rows.new_empty(z.shape[1:], dtype=dtype)


@_fake("relay_sample_bwd")
def _(grad_z, grad_kl, rows, relays, index, seed, noise, bits, mean, *others):
    need_rows, need_relays = others[3:5]  # after the layout
    grad_batch = rows.new_empty((index.shape[0], rows.shape[1]) if need_rows else 0)
    return grad_batch, relays.new_empty(relays.shape if need_relays else 0)


@_fake("gaussian_log_likelihood_fwd")
def _(x, mean, scale, mask):
    return mean.new_empty(mean.shape[:2], dtype=torch.promote_types(mean.dtype, torch.float32))


@_fake("gaussian_log_likelihood_bwd")
def _(grad_log_prob, x, mean, scale, mask, need_mean, need_scale):
    return mean.new_empty(mean.shape if need_mean else 0), scale.new_empty(
        scale.shape if need_scale else 0
    )


@_fake("linear_gaussian_log_likelihood_fwd")
def _(hidden, weight, bias, x, scale, mask):
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    return hidden.new_empty(hidden.shape[:2], dtype=dtype)


@_fake("linear_gaussian_log_likelihood_bwd")
def _(grad, hidden, weight, bias, x, scale, mask, need_hidden, need_linear, need_scale):
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    some_bias = weight if bias is None else bias
    return (
        hidden.new_empty(hidden.shape[:2], dtype=dtype),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_linear else 0),
        some_bias.new_empty(bias.shape if need_linear and bias is not None else 0),
        scale.new_empty(scale.shape if need_scale else 0),
    )


@_fake("row_adam_catch_up")
@_fake("row_adam_step")
@_fake("adam_step")
def _(*args):
    return None


# Autograd. A backward is a Function of its own, so that torch.func can differentiate through it;
# second derivatives differentiate the reference.


def _plain() -> bool:
    """No functorch transform and no compiler at work: the short ways below are open."""
    return not (torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling())


def _forward_mode() -> bool:
    """Whether forward-mode derivatives are at work, of torch.func or `torch.autograd.forward_ad`.

    The differentiable ops are then the formulas of the reference, which torch differentiates in every
    mode and order: a `Function` with a `jvp` is what the compiler refuses.
    """
    return forward_ad._current_level >= 0


def _apply(function: type[Function], *args: Any) -> Any:
    # `Function.apply` inspects the signature of `forward` at every call, which takes longer than
    # the kernels need for a small batch, and only functorch makes use of it
    owner: Any = super(Function, function) if _plain() else function
    return owner.apply(*args)


def _first_order(function: type[Function], *args: Any) -> Any:
    # without a second derivative to come, the gradient needs no node of its own
    if _plain() and not torch.is_grad_enabled():
        return function.forward(*args)
    return _apply(function, *args)


class _RelaySample(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows, relays, index, seed, noise, noise_index, groups, kept, form, num_samples, sparse
    ):
        return ops.relay_sample_fwd(
            rows, relays, index, seed, noise, groups, kept, form, num_samples, noise_index
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.groups, ctx.kept, ctx.form, _, ctx.sparse = inputs[6:]
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:6], *output[2:])

    @staticmethod
    def backward(ctx, grad_z, grad_kl, *_):
        saved = ctx.saved_tensors
        rows, index = saved[0], saved[2]
        need_rows, need_relays = ctx.needs_input_grad[:2]
        grad_batch, grad_relays = _first_order(
            _RelaySampleBackward,
            grad_z,
            grad_kl,
            *saved,
            ctx.groups,
            ctx.kept,
            ctx.form,
            need_rows,
            need_relays,
        )
        grad_rows = _scatter(grad_batch, index, rows, ctx.sparse) if need_rows else None
        return grad_rows, grad_relays if need_relays else None, *[None] * 9


class _RelaySampleBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_z,
        grad_kl,
        rows,
        relays,
        index,
        seed,
        noise,
        noise_index,
        bits,
        mean,
        groups,
        kept,
        form,
        need_rows,
        need_relays,
    ):
        return ops.relay_sample_bwd(
            grad_z,
            grad_kl,
            rows,
            relays,
            index,
            seed,
            noise,
            bits,
            mean,
            groups,
            kept,
            form,
            need_rows,
            need_relays,
            noise_index,
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        # without the mean, which depends on rows and relays
        ctx.save_for_backward(*inputs[:9])
        ctx.constants = (None, *inputs[10:])

    @staticmethod
    def backward(ctx, *grads):
        grad_z, grad_kl, rows, relays, index, seed, noise, noise_index, bits = ctx.saved_tensors
        others = (index, seed, noise, bits, *ctx.constants, noise_index)

        def first_order(grad_z: Tensor, grad_kl: Tensor, rows: Tensor, relays: Tensor) -> Any:
            return reference.relay_sample_bwd(grad_z, grad_kl, rows, relays, *others)

        _, pullback = torch.func.vjp(first_order, grad_z, grad_kl, rows, relays)
        return *pullback(grads), *[None] * 11


def _scatter(grad_batch: Tensor, index: Tensor, rows: Tensor, sparse: bool) -> Tensor:
    """The gradient of the whole table; rows that stand twice in the batch get the sum."""
    if sparse:
        return torch.sparse_coo_tensor(
            index.to(torch.int64)[None], grad_batch, rows.shape, check_invariants=False
        )
    table = torch.zeros_like(rows)
    if rows.is_cuda:  # index_add is not deterministic there
        return table.index_put((index.to(torch.int64),), grad_batch, accumulate=True)
    return table.index_add(0, index, grad_batch)


class _GaussianLogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mean, scale, mask):
        return ops.gaussian_log_likelihood_fwd(x, mean, scale, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0]
        need_x, need_mean, need_scale, _ = ctx.needs_input_grad
        grad_mean, grad_scale = _first_order(
            _GaussianLogLikelihoodBackward,
            grad,
            *ctx.saved_tensors,
            need_x or need_mean,
            need_scale,
        )
        return (
            -grad_mean.sum(0).to(x.dtype) if need_x else None,
            grad_mean if need_mean else None,
            grad_scale if need_scale else None,
            None,
        )


class _GaussianLogLikelihoodBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, mean, scale, mask, need_mean, need_scale):
        return ops.gaussian_log_likelihood_bwd(grad, x, mean, scale, mask, need_mean, need_scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.constants = inputs[5:]

    @staticmethod
    def backward(ctx, *grads):
        grad, x, mean, scale, mask = ctx.saved_tensors

        def first_order(grad: Tensor, mean: Tensor, scale: Tensor) -> Any:
            return reference.gaussian_log_likelihood_bwd(grad, x, mean, scale, mask, *ctx.constants)

        _, pullback = torch.func.vjp(first_order, grad, mean, scale)
        grad_grad, grad_mean, grad_scale = pullback(grads)
        grad_x = -grad_mean.sum(0).to(x.dtype) if ctx.needs_input_grad[1] else None
        return grad_grad, grad_x, grad_mean, grad_scale, *[None] * 3


class _LinearGaussianLogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(hidden, weight, bias, x, scale, mask):
        return ops.linear_gaussian_log_likelihood_fwd(hidden, weight, bias, x, scale, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, x, scale, mask = ctx.saved_tensors
        need_hidden, need_weight, need_bias, need_x, need_scale, _ = ctx.needs_input_grad
        grads = [None] * 4
        if need_hidden or need_weight or need_bias or need_scale:
            needs = need_hidden, need_weight or need_bias, need_scale
            _, *grads = _first_order(
                _LinearGaussianLogLikelihoodBackward, grad, *ctx.saved_tensors, *needs
            )
        grad_x = None
        if need_x:  # of the size of x: the one gradient that takes the means as a whole
            with torch.autocast(hidden.device.type, enabled=False):
                mean = reference.linear_mean(hidden, weight, bias)
            grad_mean, _ = _first_order(
                _GaussianLogLikelihoodBackward, grad, x, mean, scale, mask, True, False
            )
            grad_x = -grad_mean.sum(0).to(x.dtype)
        grad_hidden, grad_weight, grad_bias, grad_scale = grads
        return (
            grad_hidden if need_hidden else None,
            grad_weight if need_weight else None,
            grad_bias if need_bias else None,
            grad_x,
            grad_scale if need_scale else None,
            None,
        )


class _LinearGaussianLogLikelihoodBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, hidden, weight, bias, x, scale, mask, need_hidden, need_linear, need_scale):
        return ops.linear_gaussian_log_likelihood_bwd(
            grad, hidden, weight, bias, x, scale, mask, need_hidden, need_linear, need_scale
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:7])
        ctx.constants = inputs[7:]

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        wanted = [position for position, need in enumerate(ctx.needs_input_grad[:7]) if need]

        def first_order(*some: Tensor) -> Any:
            inputs = dict(enumerate(saved)) | dict(zip(wanted, some, strict=True))
            return reference.linear_gaussian_log_likelihood_bwd(*inputs.values(), *ctx.constants)

        _, pullback = torch.func.vjp(first_order, *(saved[position] for position in wanted))
        found = dict(zip(wanted, pullback(grads), strict=True))
        return *(found.get(position) for position in range(7)), *[None] * 3


# The differentiable ops, as the layer above calls them


def relay_sample(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    noise_index: Tensor | None,
    layout: RowLayout,
    num_samples: int,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    """z [S, B, T] and kl [B]; arguments checked by the caller."""
    if _forward_mode():
        return reference.relay_sample(
            rows,
            relays,
            index,
            seed,
            layout=layout,
            num_samples=num_samples,
            noise=noise,
            noise_index=noise_index,
        )
    # Inductor cannot hold a sparse gradient made from a custom op's output
    sparse = sparse and not torch.compiler.is_compiling()
    constants = (layout.groups, layout.kept, layout.form, num_samples, sparse)
    z, kl, *_ = _apply(_RelaySample, rows, relays, index, seed, noise, noise_index, *constants)
    return z, kl


def gaussian_log_likelihood(x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None) -> Tensor:
    """[S, B] from mean [S, B, D]; arguments checked by the caller."""
    if _forward_mode():
        return reference.gaussian_log_likelihood(x, mean, scale, mask)
    return _apply(_GaussianLogLikelihood, x, mean, scale, mask)


def linear_gaussian_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """[S, B] from hidden [S, B, H]; arguments checked by the caller."""
    if _forward_mode():
        with torch.autocast(hidden.device.type, enabled=False):
            return reference.linear_gaussian_log_likelihood(hidden, weight, bias, x, scale, mask)
    return _apply(_LinearGaussianLogLikelihood, hidden, weight, bias, x, scale, mask)
