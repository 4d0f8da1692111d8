"""What the command prints: what was read, and how well held-out cells were found."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .filling import Imputed
from .sources import Source

_SHOWN = 10  # tokens, and columns of one reason, in a line
_WIDEST = 28  # characters of a name


def describe(name: str, source: Source) -> str:
    """Rows, columns, share missing, what was assumed, and what is passed through, in a few lines."""
    columns = source.columns
    empty = float(np.mean([own.missing.mean() for own in columns]))
    kinds = Counter(own.kind for own in columns if own.values is not None)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [
        f"{name}: {source.num_rows:,} rows, {len(columns)} columns, {empty:.1%} of the cells empty",
    ]
    if source.assumed:
        lines.append(f"  read as: {', '.join(source.assumed)}")
    lines.append(f"  kinds: {found or 'no column that can be modelled'}")
    for own in columns:
        if own.values is None:
            done = "filled with it" if own.constant is not None else "passed through as it is"
            lines.append(f"  {own.label}: {own.reason}; {done}")
    names = source.names or []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        lines.append(f"  names that recur: {', '.join(map(repr, twice[:_SHOWN]))}")
    return "\n".join(lines)


def outcome(source: Source, result: Imputed) -> str:
    """A line for each modelled column: kind, share missing, held-out errors beside mean and linear."""
    rows = [("column", "kind", "missing", "held-out error", "column mean", "linear")]
    for at, place in enumerate(result.modelled):
        own = source.columns[place]
        label = own.label if len(own.label) <= _WIDEST else own.label[: _WIDEST - 1] + "…"
        errors = _errors(result, at)
        rows.append((label, own.kind, f"{own.missing.mean():.1%}", *errors))
    if len(rows) == 1:
        return ""
    widths = [max(len(row[cell]) for row in rows) for cell in range(len(rows[0]))]
    lines = [""]
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
        right = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  " + "  ".join((*left, *right)))
    if result.errors is not None:
        lines.append("  errors: root mean square over held-out cells, that of the column mean = 1")
    lines += [f"  --time-limit: {note}" for note in result.notes]
    return "\n".join(lines)


def _errors(result: Imputed, at: int) -> tuple[str, str, str]:
    if result.errors is None:
        return "-", "-", "-"
    blend, linear = (float(result.errors[name][at]) for name in ("blend", "linear"))
    if np.isnan(blend):
        return "-", "-", "-"
    return f"{blend:.3f}", "1", f"{linear:.3f}"
