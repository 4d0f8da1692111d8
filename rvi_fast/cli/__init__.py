"""The command line: `rvi-fast train | infer | impute | export | info | demo | reproduce | report`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..training import distributed
from ..training.loop.interrupts import Interrupted, raised
from ..training.runs.directory import RunDirectoryInUse
from ..training.workers import ProcessDied
from .parser import make_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    # as it was typed, for what tells how it was made
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    shown = warnings.formatwarning
    # where in the code a warning comes from says nothing to who calls a command
    warnings.formatwarning = _one_line
    try:
        with raised():
            return arguments.command(arguments)
    except (ValueError, ImportError, OSError, RunDirectoryInUse, distributed.RankError) as error:
        print(f"rvi-fast: error: {error}", file=sys.stderr)
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"rvi-fast: error: out of memory: {error}", file=sys.stderr)
    except ProcessDied as error:
        print(f"rvi-fast: error: {error}; started again, the command goes on", file=sys.stderr)
    except FloatingPointError as error:
        print(f"rvi-fast: training diverged: {error}", file=sys.stderr)
    except Interrupted as error:
        print(f"\nrvi-fast: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("\nrvi-fast: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = shown
    return 2


def _one_line(message: Warning | str, *where: Any, **line: Any) -> str:
    return f"rvi-fast: warning: {message}\n"
