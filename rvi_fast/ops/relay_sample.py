"""`relay_sample`: schemas, fakes, autograd and the door for the layer above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from .._op_checks import layout_of
from ..layout import RowLayout
from .autograd import apply, first_order, forward_mode, plain
from .table import defined, ops

_LAYOUT = "int[] groups, int[] kept, str form"


@defined(
    "relay_sample_fwd",
    f"(Tensor rows, Tensor relays, Tensor index, Tensor seed, Tensor? noise, "
    f"{_LAYOUT}, int num_samples, Tensor? noise_index=None) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _(rows, relays, index, seed, noise, groups, kept, form, num_samples, noise_index=None):
    layout = layout_of(int(relays.shape[1]), tuple(groups), tuple(kept), form)
    z = rows.new_empty((num_samples, index.shape[0], relays.shape[1]))
    dtype = torch.promote_types(rows.dtype, torch.float32)
    kl = rows.new_empty(index.shape[0], dtype=dtype)
    bits = rows.new_empty((index.shape[0], layout.num_words), dtype=torch.int32)
    return z, kl, bits, rows.new_empty(z.shape[1:], dtype=dtype)


@defined(
    "relay_sample_bwd",
    f"(Tensor grad_z, Tensor grad_kl, Tensor rows, Tensor relays, Tensor index, "
    f"Tensor seed, Tensor? noise, Tensor bits, Tensor? mean, {_LAYOUT}, "
    "bool need_rows, bool need_relays, Tensor? noise_index=None) -> (Tensor, Tensor)",
)
def _(grad_z, grad_kl, rows, relays, index, seed, noise, bits, mean, *others):
    need_rows, need_relays = others[3:5]  # after the layout
    grad_batch = rows.new_empty((index.shape[0], rows.shape[1]) if need_rows else 0)
    return grad_batch, relays.new_empty(relays.shape if need_relays else 0)


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
        ctx.groups, ctx.kept, ctx.form, ctx.num_samples, ctx.sparse = inputs[6:]
        # or every backward pass would fill a tensor of zeros for each output that has no gradient
        ctx.set_materialize_grads(not plain())
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:6], *output[2:])

    @staticmethod
    def backward(ctx, grad_z, grad_kl, *_):
        saved = ctx.saved_tensors
        rows, index, mean = saved[0], saved[2], saved[-1]
        if grad_z is None and grad_kl is None:
            return (None,) * 11
        if grad_z is None:
            grad_z = rows.new_zeros((ctx.num_samples, *mean.shape))
        if grad_kl is None:
            grad_kl = mean.new_zeros(len(mean))
        need_rows, need_relays = ctx.needs_input_grad[:2]
        grad_batch, grad_relays = first_order(
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

        def gradients(grad_z: Tensor, grad_kl: Tensor, rows: Tensor, relays: Tensor) -> Any:
            return reference.relay_sample_bwd(grad_z, grad_kl, rows, relays, *others)

        _, pullback = torch.func.vjp(gradients, grad_z, grad_kl, rows, relays)
        return *pullback(grads), *[None] * 11


def _scatter(grad_batch: Tensor, index: Tensor, rows: Tensor, sparse: bool) -> Tensor:
    """The gradient of the whole table; rows that stand twice in the batch get the sum."""
    if sparse:
        return torch.sparse_coo_tensor(
            index.to(torch.int64)[None],
            grad_batch,
            rows.shape,
            device=rows.device,
            check_invariants=False,
        )
    table = torch.zeros_like(rows)
    if rows.is_cuda:  # index_add is not deterministic there
        return table.index_put((index.to(torch.int64),), grad_batch, accumulate=True)
    return table.index_add(0, index, grad_batch)


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
    if forward_mode():
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
    z, kl, *_ = apply(_RelaySample, rows, relays, index, seed, noise, noise_index, *constants)
    return z, kl
