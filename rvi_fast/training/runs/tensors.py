"""Named tensors in a safetensors file, written as they are with their SHA-256, and read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..._devices import beside
from ...files import durable

_BLOCK = 1 << 20
STEM = re.compile(r"[a-z][a-z0-9_-]*")  # no dot and no slash: never a path to elsewhere
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
WIDTHS = {name: dtype.itemsize for dtype, name in DTYPES.items()}


def header_of(stem: str, named: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file, in the order in which the bytes follow it."""
    if not STEM.fullmatch(stem):
        raise ValueError(f"tensors: a file stem must match {STEM.pattern}, got {stem!r}")
    for name, tensor in named.items():
        if name == "__metadata__":
            raise ValueError(f"tensors[{stem!r}]: safetensors reserves the name {name!r}")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            got = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"tensors[{stem!r}][{name!r}] must be a dense tensor, got {got}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"tensors[{stem!r}][{name!r}]: safetensors lacks {tensor.dtype}")
    header, end = {}, 0
    # widest first: every tensor is then aligned in the mapped file
    for name in sorted(named, key=lambda name: (-named[name].element_size(), name)):
        tensor = named[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype, shape = DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return header


def write_tensors(
    path: Path, header: Mapping[str, Any], named: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Writes one safetensors file and returns its size and SHA-256.

    `safetensors.torch.save_file` would copy all tensors to the CPU at once, refuse those that share
    memory, hide the errno of a full disk, and leave the hash to a second reading.
    """
    with durable(path) as file:
        sha256 = write_blocks(file, header, named)
        return {"size": file.tell(), "sha256": sha256}


def write_blocks(file: IO[bytes], header: Mapping[str, Any], named: Mapping[str, Tensor]) -> str:
    """Writes header and tensors of a safetensors file, and returns the SHA-256 of all that."""
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for data in chain(
        [memoryview(len(text).to_bytes(8, "little") + text)],
        (_bytes_of(named[name]) for name in header if name in named),
    ):
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data


def load_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file on a device, or beside it what the device cannot hold."""
    device = torch.device(device)
    if device.type in ("cpu", "cuda"):
        return load_file(path, device=str(device))
    return {
        name: value.to(beside(device) if value.dtype == torch.float64 else device)
        for name, value in load_file(path).items()
    }
