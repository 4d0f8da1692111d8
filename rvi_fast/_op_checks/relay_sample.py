"""What `relay_sample` relies on."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from .._checks import shape_of
from ..layout import RowLayout
from .holds import FLOATS, INT32, INT64, INTEGERS, hold, hold_dims, hold_index, hold_one


@functools.lru_cache(maxsize=256)
def layout_of(
    latent_dim: int, groups: tuple[int, ...], kept: tuple[int, ...], form: str
) -> RowLayout:
    """The layout that the attributes of an op stand for."""
    return RowLayout(latent_dim, groups, kept, form)


def hold_relay(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: Sequence[int],
    kept: Sequence[int],
    form: str,
    noise_index: Tensor | None,
    num_samples: int,
) -> tuple[RowLayout, int]:
    """What both directions of `relay_sample` take; the layout and the size of the batch."""
    dtype, device, shape, sizes = rows.dtype, rows.device, rows.shape, relays.shape
    if not (dtype is relays.dtype and dtype in FLOATS and len(shape) == 2 and len(sizes) == 2):
        hold_dims("rows", rows, FLOATS, "NW")
        hold_dims("relays", relays, (dtype,), "KT")
    latent_dim = int(sizes[1])
    layout = layout_of(latent_dim, tuple(groups), tuple(kept), form)
    if shape[1] != layout.width:
        raise ValueError(f"rows: expected shape [N, {layout.width}], got {shape_of(rows)}")
    if sizes[0] != layout.num_relays or relays.device != device:
        hold("relays", relays, device, (dtype,), (layout.num_relays, latent_dim))
    batch = hold_index(index, device)
    hold_one("seed", seed, device, INT64)
    if noise is not None:
        hold("noise", noise, device, FLOATS, (num_samples, batch, latent_dim))
    if noise_index is not None:
        hold("noise_index", noise_index, device, INTEGERS, (batch,))
    return layout, batch


def relay_sample_fwd(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: Sequence[int],
    kept: Sequence[int],
    form: str,
    num_samples: int,
    noise_index: Tensor | None = None,
) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples: expected an integer >= 1, got {num_samples!r}")
    hold_relay(rows, relays, index, seed, noise, groups, kept, form, noise_index, num_samples)


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
    groups: Sequence[int],
    kept: Sequence[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
    noise_index: Tensor | None = None,
) -> None:
    hold_dims("grad_z", grad_z, FLOATS, "SBT")
    num_samples = grad_z.shape[0]
    layout, batch = hold_relay(
        rows, relays, index, seed, noise, groups, kept, form, noise_index, num_samples
    )
    device, latent_dim = rows.device, layout.latent_dim
    hold("grad_z", grad_z, device, FLOATS, (num_samples, batch, latent_dim))
    hold("grad_kl", grad_kl, device, FLOATS, (batch,))
    hold("bits", bits, device, INT32, (batch, layout.num_words))
    if mean is not None:
        hold("mean", mean, device, FLOATS, (batch, latent_dim))
