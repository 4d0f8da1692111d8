"""Marks packed into words, an eighth of their memory: of kept coefficients and of masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..layout import BITS_PER_WORD


def pack_bits(marks: Tensor) -> Tensor:
    """Packs bool [B, K] into int32 words [B, ceil(K / 32)]; entry k is bit k % 32 of word k // 32."""
    words = -(-marks.shape[-1] // BITS_PER_WORD)
    padded = pad(marks, (0, words * BITS_PER_WORD - marks.shape[-1]))
    shifts = torch.arange(BITS_PER_WORD, device=marks.device)
    bits = padded.unflatten(-1, (words, BITS_PER_WORD)).to(torch.int64) << shifts
    return bits.sum(-1).to(torch.int32)


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """Undoes `pack_bits`: int32 [B, words] to bool [B, size]."""
    shifts = torch.arange(BITS_PER_WORD, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 1).flatten(-2)[..., :size].to(torch.bool)
