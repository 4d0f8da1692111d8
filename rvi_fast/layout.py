"""Where each part of a packed row lies.

Every datapoint owns one row of the table `rows` [N, W]: the coefficients of each relay group, then
the deviation, then the log standard deviation. Each part starts at a multiple of `ALIGNMENT`
elements; what lies between the parts is padding and stays zero.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

ALIGNMENT = 4  # elements: 16 bytes of float32, the widest load of a GPU lane
BITS_PER_WORD = 32
FORMS = ("linear", "cluster", "mixture")


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class RowLayout:
    """Offsets of the parts of a packed row, in elements. Hashable; every backend reads it.

    Args:
        latent_dim: T, latent dimensions.
        groups: K_g, relay vectors in each group; empty means no relay (the VAD posterior).
        kept: m_g, coefficients kept in each group, 1 <= m_g <= K_g.
        form: "linear", "cluster" or "mixture" (design of the relay; `resolve` explains them).
    """

    latent_dim: int
    groups: tuple[int, ...]
    kept: tuple[int, ...]
    form: str = "linear"

    @classmethod
    def resolve(
        cls,
        latent_dim: int,
        groups: Sequence[int],
        top: float | int | Sequence[float | int] = 0.5,
        form: str = "linear",
    ) -> RowLayout:
        """Builds a layout from what a user writes.

        Args:
            latent_dim: T, at least 1.
            groups: K_g for each group, each at least 1.
            top: how many coefficients each group keeps: a float in (0, 1] is a share of K_g (rounded
                half up, at least one), an int is a count, a sequence has one of either per group.
                The cluster form keeps one and ignores it.
            form: "linear": relay = sum of a_k R_k over the kept k; "cluster": the same with one kept
                coefficient per group; "mixture": the kept coefficients of a group pass through a
                softmax, so that each group contributes a convex combination of its relay vectors.

        Raises:
            ValueError, TypeError: an argument is out of its range; the message names it.
        """
        if not _is_int(latent_dim) or latent_dim < 1:
            raise ValueError(f"latent_dim: expected an integer >= 1, got {latent_dim!r}")
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        if not isinstance(groups, Iterable) or isinstance(groups, str):
            raise TypeError(f"groups: expected a sequence of integers, got {groups!r}")
        groups = tuple(groups)
        for size in groups:
            if not _is_int(size) or size < 1:
                raise ValueError(f"groups: expected integers >= 1, got {size!r} in {groups!r}")
        if form == "cluster":
            tops: tuple[float | int, ...] = (1,) * len(groups)
        elif isinstance(top, Sequence) and not isinstance(top, str):
            tops = tuple(top)
            if len(tops) != len(groups):
                raise ValueError(
                    f"top: expected one entry per group ({len(groups)}), got {len(tops)}: {top!r}"
                )
        else:
            tops = (top,) * len(groups)
            if not groups:  # nothing to keep, but a wrong `top` is wrong all the same
                _kept(int(top) if _is_int(top) and top >= 1 else 1, top)
        kept = tuple(_kept(size, entry) for size, entry in zip(groups, tops, strict=True))
        return cls(int(latent_dim), tuple(int(size) for size in groups), kept, form)

    @cached_property
    def num_relays(self) -> int:
        """K, relay vectors in all groups."""
        return sum(self.groups)

    @cached_property
    def relay_offsets(self) -> tuple[int, ...]:
        """First row of each group in `relays` [K, T]."""
        return tuple(sum(self.groups[:g]) for g in range(len(self.groups)))

    @cached_property
    def group_offsets(self) -> tuple[int, ...]:
        """First element of each group's coefficients in a row."""
        return tuple(sum(map(_padded, self.groups[:g])) for g in range(len(self.groups)))

    @cached_property
    def deviation_offset(self) -> int:
        """First element of the deviation e in a row."""
        return sum(map(_padded, self.groups))

    @cached_property
    def log_std_offset(self) -> int:
        """First element of the log standard deviation r in a row."""
        return self.deviation_offset + _padded(self.latent_dim)

    @cached_property
    def width(self) -> int:
        """W, elements in a row, padding included."""
        return self.log_std_offset + _padded(self.latent_dim)

    @cached_property
    def group_slices(self) -> tuple[slice, ...]:
        """The coefficients of each group within a row."""
        return tuple(
            slice(start, start + size)
            for start, size in zip(self.group_offsets, self.groups, strict=True)
        )

    @cached_property
    def relay_slices(self) -> tuple[slice, ...]:
        """The relay vectors of each group within `relays`."""
        return tuple(
            slice(start, start + size)
            for start, size in zip(self.relay_offsets, self.groups, strict=True)
        )

    @cached_property
    def deviation_slice(self) -> slice:
        """The deviation within a row."""
        return slice(self.deviation_offset, self.deviation_offset + self.latent_dim)

    @cached_property
    def log_std_slice(self) -> slice:
        """The log standard deviation within a row."""
        return slice(self.log_std_offset, self.log_std_offset + self.latent_dim)

    @cached_property
    def word_counts(self) -> tuple[int, ...]:
        """32-bit words of kept bits of each group; the groups lie one after the other."""
        return tuple(-(-size // BITS_PER_WORD) for size in self.groups)


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _kept(size: int, top: float | int) -> int:
    if _is_int(top):
        if not 1 <= top <= size:
            raise ValueError(
                f"top: expected a count from 1 to the group's {size} relays, got {top!r}"
            )
        return int(top)
    if isinstance(top, float):
        if not 0.0 < top <= 1.0:
            raise ValueError(f"top: expected a share in (0, 1] or a count >= 1, got {top!r}")
        return max(1, math.floor(top * size + 0.5))
    raise TypeError(f"top: expected a float, an int, or one of them per group, got {top!r}")
