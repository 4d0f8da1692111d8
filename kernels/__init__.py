"""Triton kernels; `rvi_fast.kernels` when installed. Imported at the first use of a CUDA tensor."""
