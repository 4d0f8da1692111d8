"""Comparisons: the accuracy that every implementation is held to, and equality.

Accuracy is judged against `rvi_fast.reference` in float64, with the reference in the same precision
as the yardstick: the largest error may be `YARDSTICK` times the yardstick's, plus `FLOOR_ULPS` units
in the last place of the largest number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

YARDSTICK = 4.0
FLOOR_ULPS = 16


def largest_error(got: Tensor, exact: Tensor) -> float:
    """The largest |got - exact| over the entries where `exact` is finite; 0 if there are none."""
    error = (got.double() - exact.double()).abs()[exact.isfinite()]
    return float(error.max()) if error.numel() else 0.0


def assert_as_accurate(name: str, got: Tensor, exact: Tensor, yardstick: Tensor) -> None:
    """Holds `got` to the accuracy that the head of this module defines; integers must be equal."""
    assert (got.shape, got.dtype) == (yardstick.shape, yardstick.dtype), (
        f"{name}: expected {yardstick.dtype} {list(yardstick.shape)}, "
        f"got {got.dtype} {list(got.shape)}"
    )
    if not got.is_floating_point():
        assert torch.equal(got, yardstick), f"{name}: integers differ"
        return
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), yardstick.isfinite()), f"{name}: inf or NaN differ"
    scale = float(exact[finite].abs().max()) if finite.any() else 0.0
    floor = FLOOR_ULPS * torch.finfo(got.dtype).eps * scale
    allowed = YARDSTICK * largest_error(yardstick, exact) + floor
    error = largest_error(got, exact)
    assert error <= allowed, f"{name}: error {error:.3g} against float64, allowed {allowed:.3g}"


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor], rtol: float = 1e-12) -> None:
    """Each pair equal to `rtol` times the largest number of the expected one."""
    for left, right in zip(got, expected, strict=True):
        scale = float(right.detach().abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(left, right, rtol=0, atol=rtol * scale)


def assert_bit_equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Asserts that every entry is equal bit for bit; NaN equals NaN."""
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=0, atol=0, equal_nan=True, msg=f"{name}: not bit-equal"
        )


def assert_same_selection(got: Tensor, expected: Tensor, magnitudes: Tensor) -> Tensor:
    """Rows [B] where the same entries are marked; elsewhere only near-ties may have changed places.

    Args:
        got, expected: bool [B, K].
        magnitudes: |a| [B, K]. Where the marks differ, the |a| concerned agree within one unit in
            the last place without being equal: equal ones go to the lowest index.
    """
    assert torch.equal(got.sum(-1), expected.sum(-1)), "bits: another number of coefficients kept"
    differ = got != expected
    for row in differ.any(-1).nonzero().flatten():
        low, high = torch.aminmax(magnitudes[row][differ[row]])
        near = low < high <= torch.nextafter(low, torch.full_like(low, torch.inf))
        assert near, f"bits: row {int(row)} keeps |a| = {float(low)} instead of {float(high)}"
    return ~differ.any(-1)
