"""`relay_sample`: documentation, argument checks, call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from .. import _checks, ops
from ..layout import RowLayout


class RelaySample(NamedTuple):
    """What a posterior returns: latents z [B, T] or [S, B, T] and KL divergences kl [B], in nats."""

    z: Tensor
    kl: Tensor


# torch takes a named tuple for what it is, but writes down, in `torch.export.save` and for AOTInductor,
# only those whose name it has been told
_register_namedtuple(RelaySample, serialized_type_name="rvi_fast.RelaySample")


def relay_sample(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor | int = 0,
    *,
    layout: RowLayout,
    num_samples: int | None = None,
    noise: Tensor | None = None,
    noise_index: Tensor | None = None,
    sparse: bool = False,
) -> RelaySample:
    """Samples the relay posterior of a batch of rows, with its KL divergence from N(0, I).

        mu = sum_g sum_{k kept in g} a_k R_k + e,   sigma = exp(r)
        z  = mu + sigma * noise,   kl = 1/2 sum_t (mu^2 + sigma^2 - 1 - 2 r)

    In each group the `layout.kept[g]` coefficients of largest absolute value are kept.

    Args:
        rows: packed rows [N, W], laid out by `layout`.
        relays: relay vectors [K, T] of all groups, one group after the other; same dtype.
        index: rows of the batch [B], int32 or int64; a row may stand in it more than once.
        seed: int64 [1], or an int: key of the noise. A row's noise depends on seed, row number,
            sample and latent dimension alone, not on the batch.
        layout: where the parts of a row lie.
        num_samples: S; None draws one sample and returns z without the leading dimension.
        noise: standard normal draws to use instead, of z's shape; a constant.
        noise_index: row numbers [B] that key the noise, int32 or int64, any numbers: those of a larger
            table of which `rows` is a part. None is `index`.
        sparse: return the gradient of `rows` as a sparse tensor, as `nn.Embedding` does.

    Returns:
        `RelaySample`: z [B, T] or [S, B, T] in the dtype of `rows`; kl [B] in nats, at least float32.

    Gradient:
        To `rows` and `relays`, once and twice differentiable. The choice of the kept coefficients
        is a constant.

    Raises:
        IndexError: a row number outside [0, N).
        TypeError, ValueError: dtypes, shapes or devices that do not fit.

    Note:
        Ties go to the lowest index, -0 equals +0, NaN ranks above every number. r is clamped to
        [-30, 30] where it is used. The result is deterministic.

    Source:
        Paper eq. 3, 4 and 5; `rvi_fast.reference.relay_sample`.

    Example:
        >>> import torch, rvi_fast
        >>> layout = rvi_fast.RowLayout.resolve(latent_dim=2, groups=(3,), top=1)
        >>> rows = torch.zeros(5, layout.width)
        >>> rows[4, :3] = torch.tensor([0.5, -2.0, 1.0])
        >>> relays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> z, kl = rvi_fast.relay_sample(
        ...     rows, relays, torch.tensor([4]), layout=layout, noise=torch.zeros(1, 2)
        ... )
        >>> z
        tensor([[ 0., -2.]])
        >>> kl
        tensor([2.])
    """
    _check_tables(rows, relays, layout)
    _checks.check_index(index, rows.device)
    samples = 1 if num_samples is None else _checks.check_positive_int("num_samples", num_samples)
    if noise is not None:
        _checks.check_tensor("noise", noise)
        shape = (index.shape[0], layout.latent_dim)
        _checks.check_shape("noise", noise, shape if num_samples is None else (samples, *shape))
        _checks.check_same_device("noise", noise, rows.device)
        if noise.requires_grad:
            raise ValueError("noise: expected a constant, got a tensor that requires grad")
        noise = noise.reshape(samples, *shape)
    if noise_index is not None:
        _checks.check_index(noise_index, rows.device, "noise_index")
        _checks.check_shape("noise_index", noise_index, tuple(index.shape))
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"seed: expected one int64 element, got {seed.dtype} {_checks.shape_of(seed)}"
            )
        _checks.check_same_device("seed", seed, rows.device)
    elif isinstance(seed, int) and not isinstance(seed, bool):
        seed = torch.full((1,), seed, dtype=torch.int64, device=rows.device)
    else:
        raise TypeError(f"seed: expected an int or an int64 tensor, got {type(seed).__name__}")
    z, kl = ops.relay_sample(rows, relays, index, seed, noise, noise_index, layout, samples, sparse)
    return RelaySample(z.squeeze(0) if num_samples is None else z, kl)


def _check_tables(rows: Tensor, relays: Tensor, layout: RowLayout) -> None:
    _checks.check_tensor("rows", rows)
    _checks.check_tensor("relays", relays)
    if not rows.is_floating_point():
        raise TypeError(f"rows: expected floating point, got {rows.dtype}")
    if rows.dim() != 2 or rows.shape[1] != layout.width:
        raise ValueError(f"rows: expected shape [N, {layout.width}], got {_checks.shape_of(rows)}")
    _checks.check_shape("relays", relays, (sum(layout.groups), layout.latent_dim))
    if relays.dtype != rows.dtype:
        raise TypeError(f"relays: expected the dtype of rows, {rows.dtype}, got {relays.dtype}")
    _checks.check_same_device("relays", relays, rows.device)
