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
from typing import Literal, get_args

ALIGNMENT = 4  # elements: 16 bytes of float32, the widest load of a GPU lane
BITS_PER_WORD = 32
Form = Literal["linear", "cluster", "mixture"]
FORMS: tuple[Form, ...] = get_args(Form)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class RowLayout:
    """Offsets of the parts of a packed row, in elements. Hashable; every backend reads it.

    Args:
        latent_dim: T, latent dimensions.
        groups: K_g, relay vectors in each group; empty means no relay (the VAD posterior).
        kept: m_g, coefficients kept in each group, 1 <= m_g <= K_g; 1 in the cluster form.
        form: "linear", "cluster" or "mixture" (design of the relay; `resolve` explains them).

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
    """

    latent_dim: int
    groups: tuple[int, ...]
    kept: tuple[int, ...]
    form: str = "linear"

    def __post_init__(self) -> None:
        _check_latent_dim(self.latent_dim)
        _check_form(self.form)
        groups, kept = _integers("groups", self.groups), _integers("kept", self.kept)
        if len(kept) != len(groups):
            raise ValueError(
                f"kept: expected one entry per group ({len(groups)}), got {len(kept)}: {kept!r}"
            )
        for size, count in zip(groups, kept, strict=True):
            largest = 1 if self.form == "cluster" else size
            if count > largest:
                raise ValueError(
                    f"kept: expected counts from 1 to {largest} for a group of {size} in form "
                    f"{self.form!r}, got {count}"
                )
        # plain integers in tuples, whatever they came as: equal layouts hash alike
        for name, value in (
            ("latent_dim", int(self.latent_dim)),
            ("groups", groups),
            ("kept", kept),
        ):
            object.__setattr__(self, name, value)
        # made now: in Python 3.11 the first use of such a property takes a lock, and the compiler
        # cannot trace that
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                getattr(self, name)

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
        _check_latent_dim(latent_dim)
        _check_form(form)
        groups = _integers("groups", groups)
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
        return cls(latent_dim, groups, kept, form)

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

    @cached_property
    def num_words(self) -> int:
        """32-bit words of kept bits of all groups."""
        return sum(self.word_counts)


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_latent_dim(value: object) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"latent_dim: expected an integer >= 1, got {value!r}")


def _check_form(value: object) -> None:
    if value not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {value!r}")


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{name}: expected a sequence of integers, got {values!r}")
    values = tuple(values)
    for value in values:
        if not _is_int(value) or value < 1:
            raise ValueError(f"{name}: expected integers >= 1, got {value!r} in {values!r}")
    return tuple(int(value) for value in values)


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
