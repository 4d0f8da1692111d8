"""What several kernels share."""

from __future__ import annotations

import os

import torch
import triton


def input_precision() -> str:
    """How the tensor cores multiply float32, after `torch.get_float32_matmul_precision()`.

    "highest" is as accurate as float32 (tf32x3: errors of 8e-8), "high" about 4e-6 at half the cost.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":  # multiplies in float32, whatever it is told
        return "tf32x3"
    precision = {"highest": "tf32x3", "high": "bf16x3", "medium": "tf32"}
    return precision[torch.get_float32_matmul_precision()]


def block_of(size: int, least: int = 16) -> int:
    """The power of two, at least `least`, that covers `size`."""
    return max(least, triton.next_power_of_2(size))
