"""`rvi-fast impute FILE --out FILE`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ... import _checks, data
from ...data.files import require
from ...data.formats.registry import listed
from ..checks import check_device
from .filling import Imputed, imputed
from .sources import ENDINGS, Options, Source, read_source, write_source
from .summary import describe, outcome


def impute_file(arguments: argparse.Namespace) -> int:
    """Fills in the empty cells of a table, which is read, modelled and written by one command."""
    started = time.monotonic()
    limit = arguments.time_limit
    if limit is not None:
        _checks.check_positive_float("--time-limit", limit)
    path, out = Path(arguments.table), arguments.out
    targets = _targets(arguments)
    _check_files(path, targets, arguments.overwrite)
    device = check_device(arguments.device)
    require("pandas", "tabular")
    require("sklearn", "sklearn")
    source = read_source(path, _options(arguments))
    print(describe(str(path), source), flush=True)
    result = imputed(
        source,
        device=device,
        seed=arguments.seed,
        draws=arguments.draws,
        progress=not arguments.quiet and sys.stderr.isatty(),
        end=None if limit is None else started + limit,
    )
    if arguments.separate:
        for fills, target in zip(result.draws, targets, strict=True):
            write_source(source, [fills], target)
    else:
        write_source(source, result.draws, out)
    print(outcome(source, result))
    _say_what_was_written(source, result, targets, time.monotonic() - started)
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    """How the file is to be read."""
    delimiter = arguments.delimiter
    if delimiter is not None:
        delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ValueError(f"--delimiter: expected one character, got {arguments.delimiter!r}")
    return Options(
        delimiter,
        arguments.encoding,
        arguments.header,
        arguments.decimal,
        tuple(arguments.missing_values),
        tuple(arguments.kinds),
    )


def _targets(arguments: argparse.Namespace) -> list[Path]:
    """The files that are to be written."""
    if arguments.draws is not None:
        _checks.check_positive_int("--draws", arguments.draws)
    if not arguments.separate:
        return [arguments.out]
    if arguments.draws is None:
        raise ValueError("--separate: expected --draws beside it")
    out = arguments.out
    name, dot, endings = out.name.partition(".")
    return [out.with_name(f"{name}-{n}{dot}{endings}") for n in range(1, arguments.draws + 1)]


def _check_files(path: Path, targets: list[Path], overwrite: bool) -> None:
    """Refuses what could not be read, or written when all is done."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, which is not there")
    for name in (path, *targets):
        if not name.name.lower().endswith(ENDINGS):
            raise ValueError(f"{name}: expected {listed(ENDINGS)}")
    for target in targets:
        try:
            data.check_target(target, None)
        except ValueError as error:
            raise ValueError(f"--out: {str(error).removeprefix('path: ')}") from error
        if target.exists() and not overwrite:
            what = "is the table itself" if target.samefile(path) else "is there already"
            raise ValueError(f"--out: {target} {what}; --overwrite replaces it")


def _say_what_was_written(
    source: Source, result: Imputed, targets: list[Path], seconds: float
) -> None:
    cells = sum(len(own) for own in result.draws[0].values())
    count = len(result.draws)
    draws = f", {count} draws each" if count > 1 else ""
    left = sum(int(own.missing.sum()) for own in source.columns) - cells
    rest = f"; {left:,} in columns that are passed through stay empty" if left else ""
    names = ", ".join(map(str, targets))
    print(f"\n{cells:,} empty cells filled in{draws}{rest}: {names} ({seconds:.0f} s)")
