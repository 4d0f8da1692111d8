"""Pages of files that are mapped into memory: when they are read, written and let go."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from torch import Tensor

MS_SYNC = 4 if sys.platform == "linux" else 16
WILLNEED, DONTNEED, POPULATE_WRITE = 3, 4, 23
_PAGE = 4096 if sys.platform == "win32" else os.sysconf("SC_PAGE_SIZE")
_SYNC_FILE_RANGE_WRITE = 2


def forget_pages(address: int, length: int) -> None:
    """Lets go of the whole pages of a shared map that lie there: nothing written is lost."""
    first, last = -(-address // _PAGE) * _PAGE, (address + length) // _PAGE * _PAGE
    call("madvise", first, max(last - first, 0), DONTNEED)


def want_pages(address: int, length: int) -> None:
    """Asks for the pages that lie there to be read ahead."""
    first = address // _PAGE * _PAGE
    call("madvise", first, address + length - first if length else 0, WILLNEED)


def bytes_of_rows(table: Tensor, start: int, stop: int) -> tuple[int, int]:
    """Address and length of some rows."""
    width = table.stride(0) * table.element_size()
    return table.data_ptr() + start * width, max(min(stop, len(table)) - start, 0) * width


def pages_of_rows(table: Tensor, start: int, stop: int) -> tuple[int, int]:
    """Address and length of the whole pages that hold some rows."""
    first, length = bytes_of_rows(table, start, stop)
    address = first // _PAGE * _PAGE
    return address, first + length - address


def start_writing(path: Path, offset: int, length: int) -> None:
    """Has the system write dirty pages of a file, and does not wait; it would do so by itself later."""
    if sys.platform != "linux" or not length:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # only a hint: what fails here is reported by `sync`
        ctypes.CDLL(None).sync_file_range(
            ctypes.c_int(descriptor),
            ctypes.c_int64(offset),
            ctypes.c_int64(length),
            ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
        )
    finally:
        os.close(descriptor)


def call(name: str, address: int, length: int, option: int) -> int:
    """msync or madvise: 0, or the error number."""
    if sys.platform == "win32" or not length:
        return 0
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    failed = function(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(option))
    return ctypes.get_errno() if failed else 0
