"""`rvi-fast impute FILE --out FILE`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ... import _checks, data
from ...data.files import require
from ...data.formats.registry import listed
from ...experiments.pictures import check_matplotlib
from ...files import write_together
from ..checks import check_device
from .filling import Imputed, imputed
from .page import Run, page
from .sources import ENDINGS, Options, Source, read_source
from .summary import describe, outcome


def impute_file(arguments: argparse.Namespace) -> int:
    """Fills in the empty cells of a table, which is read, modelled and written by one command."""
    started = time.monotonic()
    limit = arguments.time_limit
    if limit is not None:
        _checks.check_positive_float("--time-limit", limit)
    path = Path(arguments.table)
    targets = _targets(arguments)
    _check_files(path, targets, arguments.overwrite)
    if arguments.report is not None:
        _check_report(arguments.report, arguments.overwrite)
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
    parts = [[fills] for fills in result.draws] if arguments.separate else [result.draws]
    content = {
        target: source.content(own, target) for own, target in zip(parts, targets, strict=True)
    }
    if arguments.report is not None:
        run = Run(
            str(path), [*map(str, targets)], arguments.words, time.monotonic() - started,
            str(device), arguments.seed,
        )  # fmt: skip
        content[arguments.report] = page(source, result, run).encode()
    write_together(content)
    print(outcome(source, result))
    _say_what_was_written(source, result, targets, time.monotonic() - started)
    if arguments.report is not None:
        print(f"report: {arguments.report}")
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


def _check_report(report: Path, overwrite: bool) -> None:
    """Refuses a page that could not be drawn, or written when all is done."""
    if report.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--report: expected a name that ends in .html, got {str(report)!r}")
    try:
        data.check_target(report, None)
    except ValueError as error:
        raise ValueError(f"--report: {str(error).removeprefix('path: ')}") from error
    if report.exists() and not overwrite:
        raise ValueError(f"--report: {report} is there already; --overwrite replaces it")
    check_matplotlib()


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
