"""Triton kernels; `rvi_fast.kernels` when installed. Imported at the first use of a CUDA tensor."""

from .relay_sample import relay_sample_fwd
from .relay_sample_bwd import relay_sample_bwd

__all__ = ["relay_sample_bwd", "relay_sample_fwd"]
