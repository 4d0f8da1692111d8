"""A messy table of a stated law: ids, dates, categories, integers, yes/no, numbers and notes, written as
a German spreadsheet would: semicolons, decimal commas, Latin-1, CRLF, `?` and empty cells."""

import datetime
from typing import NamedTuple

import numpy as np

TOKENS = ("", "?", "NA")
FIRST = datetime.date(2015, 1, 1)
REGIONS = ("Köln", "München", "Zürich", "Graz", "Genève")
GRADES = ("niedrig", "mittel", "hoch")


class Messy(NamedTuple):
    """Cells of the table as written [N][D], what is hidden [N, D], names, and the file's bytes."""

    full: list[list[str]]
    hidden: np.ndarray
    names: list[str]
    content: bytes


def comma(number, decimals):
    return f"{number:.{decimals}f}".replace(".", ",")


def messy_table(num_rows, seed=0, missing=0.1):
    """Rows in which two standard normal factors a, b and noise give every column but id and note."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, num_rows))
    noise = random.normal(size=(num_rows, 16))
    columns = {
        "id": [f"K-{row:06d}" for row in range(num_rows)],
        "Alter": [
            f"{number:d}" for number in np.clip(45 + 12 * a + 4 * noise[:, 0], 18, 95).astype(int)
        ],
        "Einkommen": [comma(x, 2) for x in np.exp(7.8 + 0.5 * a + 0.2 * b + 0.1 * noise[:, 1])],
        "Region": [REGIONS[k] for k in np.digitize(b + 0.4 * noise[:, 2], (-1, -0.3, 0.3, 1))],
        "Raucher": [("nein", "ja")[x] for x in (a + b + 0.5 * noise[:, 3] < -0.3).astype(int)],
        "Eintritt": [
            (FIRST + datetime.timedelta(days=int(x))).strftime("%d.%m.%Y")
            for x in 1500 + 500 * a + 80 * noise[:, 4]
        ],
        "Besuche": [f"{x:d}" for x in random.poisson(np.exp(1 - 0.5 * a))],
        "Größe": [comma(x, 1) for x in 170 + 6 * b + 3 * noise[:, 5]],
        "Gewicht": [comma(x, 1) for x in 75 + 9 * b + 4 * a + 3 * noise[:, 6]],
        "Stufe": [GRADES[k] for k in np.digitize(a - b + 0.4 * noise[:, 7], (-0.6, 0.6))],
        "Blutdruck": [f"{x:d}" for x in (120 + 10 * a + 4 * noise[:, 8]).astype(int)],
        "Temperatur": [comma(x, 2) for x in 36.8 + 0.3 * b + 0.1 * noise[:, 9]],
        "Kinder": [f"{x:d}" for x in np.clip(1.5 + a + 0.4 * noise[:, 10], 0, 6).astype(int)],
        "Saldo": [comma(x, 2) for x in -200 + 900 * (a + b) + 150 * noise[:, 11]],
        "Notiz": [f'"Akte {row}; siehe ""{row % 7}"""' for row in range(num_rows)],
    }
    names = list(columns)
    full = [list(row) for row in zip(*columns.values(), strict=True)]
    hidden = random.random((num_rows, len(names))) < missing
    hidden[:, [0, -1]] = False
    tokens = random.integers(len(TOKENS), size=hidden.shape)
    lines = [";".join(names)]
    for row, cells in enumerate(full):
        shown = zip(cells, hidden[row], tokens[row], strict=True)
        lines.append(";".join(TOKENS[token] if gone else cell for cell, gone, token in shown))
    return Messy(full, hidden, names, "".join(f"{line}\r\n" for line in lines).encode("latin-1"))
