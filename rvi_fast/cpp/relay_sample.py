"""`relay_sample` in C++."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor, get_num_threads

from .._op_checks import checked, layout_of
from .extension import _C, BOTH, FLOAT64, INT32, address_of, converted, row_numbers

_FORMS = {"linear": _C.Form.linear, "cluster": _C.Form.cluster, "mixture": _C.Form.mixture}


@lru_cache(maxsize=256)
def _layout(
    latent_dim: int, groups: tuple[int, ...], kept: tuple[int, ...], form: str
) -> tuple[_C.RowLayout, int, int]:
    """The layout as the kernels read it, its words of kept bits, and W."""
    layout = layout_of(latent_dim, groups, kept, form)
    native = _C.RowLayout(
        latent_dim=latent_dim,
        groups=groups,
        kept=kept,
        form=_FORMS[form],
        group_offsets=layout.group_offsets,
        deviation_offset=layout.deviation_offset,
        log_std_offset=layout.log_std_offset,
        width=layout.width,
    )
    return native, layout.num_words, layout.width


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
    """`reference.relay_sample_fwd`."""
    dtype = rows.dtype
    if dtype not in BOTH:
        return NotImplemented
    latent_dim = relays.shape[1]
    native, words, _ = _layout(latent_dim, tuple(groups), tuple(kept), form)
    rows, relays, index = rows.contiguous(), relays.contiguous(), index.contiguous()
    if noise is not None:
        noise = converted(dtype, noise)
    keys = index if noise_index is None else noise_index.contiguous()
    batch = index.shape[0]
    z = relays.new_empty((num_samples, batch, latent_dim))
    kl = relays.new_empty(batch)
    bits = relays.new_empty((batch, words), dtype=INT32)
    mean = relays.new_empty((batch, latent_dim))
    _C.relay_sample_fwd(
        layout=native,
        is_double=dtype is FLOAT64,
        threads=get_num_threads(),
        rows=rows.data_ptr(),
        num_data=rows.shape[0],
        relays=relays.data_ptr(),
        index=row_numbers(index),
        seed=seed.data_ptr(),
        noise=address_of(noise),
        noise_index=row_numbers(keys),
        num_samples=num_samples,
        z=z.data_ptr(),
        kl=kl.data_ptr(),
        bits=bits.data_ptr(),
        mean=mean.data_ptr(),
    )
    return z, kl, bits, mean


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
    """`reference.relay_sample_bwd`."""
    dtype = rows.dtype
    if dtype not in BOTH or mean is None:
        return NotImplemented
    native, _, width = _layout(relays.shape[1], tuple(groups), tuple(kept), form)
    rows, relays, index = rows.contiguous(), relays.contiguous(), index.contiguous()
    bits, mean = bits.contiguous(), converted(dtype, mean)
    grad_z, grad_kl = converted(dtype, grad_z), converted(dtype, grad_kl)
    if noise is not None:
        noise = converted(dtype, noise)
    keys = index if noise_index is None else noise_index.contiguous()
    batch = index.shape[0]
    grad_batch = relays.new_empty((batch, width) if need_rows else 0)
    grad_relays = relays.new_empty(relays.shape if need_relays else 0)
    _C.relay_sample_bwd(
        layout=native,
        is_double=dtype is FLOAT64,
        threads=get_num_threads(),
        rows=rows.data_ptr(),
        num_data=rows.shape[0],
        relays=relays.data_ptr(),
        index=row_numbers(index),
        seed=seed.data_ptr(),
        noise=address_of(noise),
        noise_index=row_numbers(keys),
        num_samples=grad_z.shape[0],
        grad_z=grad_z.data_ptr(),
        grad_kl=grad_kl.data_ptr(),
        bits=bits.data_ptr(),
        mean=mean.data_ptr(),
        grad_batch=grad_batch.data_ptr(),
        grad_relays=grad_relays.data_ptr(),
    )
    return grad_batch, grad_relays
