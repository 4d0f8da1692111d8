"""Processes of one thread that the benchmarks of `scale.py` start, alone or together."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from rvi_fast.training import distributed


def in_ranks(size: int, program: str, *arguments: Any) -> list[Any]:
    """What `python PROGRAM ARGUMENTS` prints last, in each of so many processes."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port = sock.getsockname()[1]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    running = []
    for rank in range(size):
        own = {k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        environment = {**os.environ, **one, **(own if size > 1 else {})}
        command = [sys.executable, program, *map(str, arguments)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{arguments} in {size} processes: {said}")
    return [json.loads(output.splitlines()[-1]) for output in said]


@contextlib.contextmanager
def joined() -> Iterator[int]:
    """Within it this process is one of a group, if it was started as one; gives their number."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not distributed.launch.launched():
        yield 1
        return
    distributed.init(device="cpu", timeout=300)
    yield torch.distributed.get_world_size()
    distributed.leave()
