"""`rvi-fast info | demo | reproduce | report`."""

from __future__ import annotations

import argparse
import sys

from .. import _info
from .checks import check_device


def info(_: argparse.Namespace) -> int:
    """Versions, devices and implementations."""
    return _info.main()


def demo(arguments: argparse.Namespace) -> int:
    """Digits with half of their pixels missing, filled in."""
    from ..experiments import demo as digits

    epochs = digits.EPOCHS if arguments.epochs is None else arguments.epochs
    scores = digits.run(arguments.run_dir, epochs=epochs, progress=not arguments.quiet)
    print(f"\nelastic error over the missing {digits.MISSING:.0%} of the pixels (lower is better)")
    for name, score in scores.items():
        print(f"  {name:<12} {score:.4f}")
    print(f"\nwritten to {arguments.run_dir}:")
    for path in sorted(arguments.run_dir.iterdir()):
        if not path.name.startswith("."):
            print(f"  {path.name}")
    return 0


def reproduce(arguments: argparse.Namespace) -> int:
    """Figures of the paper."""
    from ..experiments import registry, sweep

    if arguments.redraw:
        for path in registry.redraw(arguments.figures, arguments.out):
            print(path)
        return 0
    try:
        written = registry.reproduce(
            arguments.figures,
            arguments.out,
            scale=arguments.scale,
            sets=arguments.data or (),
            data_dir=arguments.data_dir,
            jobs=arguments.jobs,
            keep=arguments.keep,
            device=None if arguments.device is None else check_device(arguments.device),
            progress=not arguments.quiet,
        )
    except sweep.SweepError as error:
        print(f"rvi-fast: error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


def report(arguments: argparse.Namespace) -> int:
    """The page with the claims of the paper beside the results."""
    from ..experiments.report import report as write

    for path in write(arguments.results, arguments.out):
        print(path)
    return 0
