"""`relay_sample`: selection within groups, mean, sample and KL divergence of rows, and the gradients."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._op_checks import checked, layout_of
from ..layout import RowLayout
from ._common import compute_dtype, rows_at
from .bits import pack_bits, unpack_bits
from .noise import normal_noise

# exp(2 * 30) summed over a thousand dimensions stays finite in float32
LOG_STD_LIMIT = 30.0


def select(coefficients: Tensor, kept: int) -> Tensor:
    """Marks the `kept` coefficients of largest absolute value (the paper's B_i).

    Ties go to the lowest index, -0 equals +0, NaN ranks above every number.

    Args:
        coefficients: [..., K].
        kept: m, from 1 to K.

    Returns:
        Bool [..., K], true for exactly m entries of each row.
    """
    order = torch.sort(coefficients.abs(), dim=-1, descending=True, stable=True).indices
    marks = torch.zeros_like(coefficients, dtype=torch.bool)
    return marks.scatter(-1, order[..., :kept], True)


def group_weights(coefficients: Tensor, marks: Tensor, form: str) -> Tensor:
    """What multiplies each relay vector of a group: 0 where not kept.

    Args:
        coefficients: [B, K_g].
        marks: bool [B, K_g], the kept ones.
        form: "linear" and "cluster": the coefficient itself. "mixture": softmax over the kept
            coefficients; the paper names mixtures without a formula, this is our definition.
    """
    if form == "mixture":
        return coefficients.masked_fill(~marks, -torch.inf).softmax(-1)
    return coefficients.masked_fill(~marks, 0.0)


def relay_sample(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    *,
    layout: RowLayout,
    num_samples: int | None = None,
    noise: Tensor | None = None,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws z and the KL divergence for a batch of rows (paper eq. 3, 4, 5).

        relay_b = sum_g sum_{k kept in g} a_ik R_k       i = index[b]
        mu_b    = relay_b + e_i,   sigma_b = exp(r_i),   z_b = mu_b + sigma_b * noise_b
        kl_b    = 1/2 sum_t (mu^2 + sigma^2 - 1 - 2 r)

    Args and returns: `rvi_fast.relay_sample`.
    """
    batch = rows_at(rows, index).to(compute_dtype(rows))
    if noise is None:
        keys = index if noise_index is None else noise_index
        noise = normal_noise(seed, keys, num_samples or 1, layout.latent_dim, batch.dtype)
    z, kl, _ = _sample(batch, relays, selected(batch, layout), noise, layout)
    return (z if num_samples else z[0]).to(rows.dtype), kl


def selected(batch: Tensor, layout: RowLayout) -> list[Tensor]:
    """The kept coefficients of rows [B, W]: for each group bool [B, K_g]."""
    return [
        select(batch[:, columns], kept)
        for columns, kept in zip(layout.group_slices, layout.kept, strict=True)
    ]


def posterior_mean(
    batch: Tensor, relays: Tensor, marks: list[Tensor], layout: RowLayout
) -> tuple[Tensor, list[Tensor]]:
    """mu [B, T] of rows [B, W] and the weights of each group's relay vectors, [B, K_g] each."""
    weights = [
        group_weights(batch[:, columns], mark, layout.form)
        for columns, mark in zip(layout.group_slices, marks, strict=True)
    ]
    mean = batch[:, layout.deviation_slice]
    for weight, part in zip(weights, layout.relay_slices, strict=True):
        mean = mean + weight @ relays[part].to(batch.dtype)
    return mean, weights


def _sample(
    batch: Tensor, relays: Tensor, marks: list[Tensor], noise: Tensor, layout: RowLayout
) -> tuple[Tensor, Tensor, Tensor]:
    mean, _ = posterior_mean(batch, relays, marks, layout)
    log_std = batch[:, layout.log_std_slice].clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT)
    std = log_std.exp()
    z = mean + std * (noise if noise.dim() == 3 else noise[None]).to(batch.dtype)
    kl = 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * log_std).sum(-1)
    return z, kl, mean


@checked
def relay_sample_fwd(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    num_samples: int,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z [S, B, T], kl [B], kept bits [B, words], mu [B, T].

    `noise` is None or [S, B, T]; drawn noise is keyed by `noise_index` [B], or by `index`.
    """
    layout = layout_of(int(relays.shape[1]), tuple(groups), tuple(kept), form)
    batch = rows_at(rows, index).to(compute_dtype(rows))
    if noise is None:
        keys = index if noise_index is None else noise_index
        noise = normal_noise(seed, keys, num_samples, layout.latent_dim, batch.dtype)
    marks = selected(batch, layout)
    z, kl, mean = _sample(batch, relays, marks, noise, layout)
    words = [pack_bits(mark) for mark in marks]
    bits = torch.cat(words, -1) if words else index.new_empty((len(index), 0), dtype=torch.int32)
    # without groups the mean is a view of the rows
    return z.to(rows.dtype), kl, bits, mean.contiguous()


@checked
def relay_sample_bwd(
    grad_z: Tensor,
    grad_kl: Tensor,
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    bits: Tensor,
    mean: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the batch's rows [B, W] and of the relays [K, T]; one not needed has 0 elements.

    `mean` is mu as the forward pass returned it; None computes it again, differentiably.
    With grad_mu = sum_s grad_z + grad_kl mu:

        grad_e = grad_mu
        grad_r = sum_s grad_z noise sigma + grad_kl (sigma^2 - 1)
        grad_a = <grad_mu, R_k> for kept k, else 0
        grad_R = sum_b [k kept in b] a_bk grad_mu_b

    The mixture replaces a by w = softmax(a): grad_a = w (<grad_mu, R_k> - sum_j w_j <grad_mu, R_j>).
    """
    layout = layout_of(int(relays.shape[1]), tuple(groups), tuple(kept), form)
    batch = rows_at(rows, index).to(compute_dtype(rows))
    grad_z, grad_kl = grad_z.to(batch.dtype), grad_kl.to(batch.dtype)[:, None]
    words = bits.split(layout.word_counts, dim=-1) if groups else ()
    marks = [unpack_bits(word, size) for word, size in zip(words, groups, strict=True)]
    again, weights = posterior_mean(batch, relays, marks, layout)
    mean = again if mean is None else mean.to(batch.dtype)
    grad_mean = grad_z.sum(0) + grad_kl * mean

    grad_batch = rows.new_empty(0)
    if need_rows:
        parts = []
        for part, mark, weight in zip(layout.relay_slices, marks, weights, strict=True):
            products = grad_mean @ relays[part].to(batch.dtype).mT
            if form == "mixture":
                centre = (weight * products).sum(-1, keepdim=True)
                parts.append(weight * (products - centre))
            else:
                parts.append(products.masked_fill(~mark, 0.0))
        log_std = batch[:, layout.log_std_slice]
        inside = (log_std >= -LOG_STD_LIMIT) & (log_std <= LOG_STD_LIMIT)
        std = log_std.clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT).exp()
        if noise is None:
            keys = index if noise_index is None else noise_index
            noise = normal_noise(seed, keys, len(grad_z), layout.latent_dim, batch.dtype)
        grad_log_std = (grad_z * noise.to(batch.dtype)).sum(0) * std + grad_kl * (std.square() - 1)
        parts += [grad_mean, grad_log_std.masked_fill(~inside, 0.0)]
        starts = [*layout.group_offsets, layout.deviation_offset, layout.log_std_offset]
        widths = [end - start for start, end in pairwise([*starts, layout.width])]
        parts = [
            pad(part, (0, width - part.shape[1])) for part, width in zip(parts, widths, strict=True)
        ]
        grad_batch = torch.cat(parts, dim=-1).to(rows.dtype)
    grad_relays = relays.new_empty(0)
    if need_relays:
        combined = torch.cat([*weights, mean.new_empty((len(mean), 0))], -1)
        grad_relays = (combined.mT @ grad_mean).to(relays.dtype)
    return grad_batch, grad_relays
