"""Parquet, Excel and NumPy files as tables, with the dtypes that they have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.files import require
from .kinds import MISSING, Cells, Column, Words, recognise
from .number_form import NumberForm
from .packing import is_text, packed
from .sources import Fills, Options, kinds_of, labels_of, name_of


class FrameSource:
    """A file of typed columns: Parquet, the first sheet of an Excel file, or a NumPy array."""

    def __init__(self, path: Path, options: Options) -> None:
        self.ending = path.suffix.lower()
        self.frame, self.names, self.assumed = _read(path, options)
        self.path = path
        width = self.frame.shape[1]
        if not len(self.frame) or not width:
            raise ValueError("an empty table: no row or no column")
        self.labels = labels_of(self.names, width)
        tokens = MISSING | set(options.missing_values)
        kinds = kinds_of(options.kinds, self.names, width)
        self.columns = [self._column(place, kinds.get(place), tokens) for place in range(width)]

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.frame)

    def series(self, column: int) -> Any:
        """A column as pandas has it."""
        return self.frame.iloc[:, column]

    def content(self, draws: Sequence[Fills], out: Path) -> bytes:
        """See `Source`; what is observed keeps its dtype and value."""
        frames = [frame_of(self, draw) for draw in draws]
        if self.ending == ".xlsx" and out.suffix.lower() == ".xlsx" and len(draws) == 1:
            return _sheet(self.path, frames[0], draws[0], self.names is not None)
        return frame_content(frames, out)

    def _column(self, place: int, asked: str | None, tokens: frozenset[str]) -> Column:
        """A column with the kind that its dtype says; of strings the kind that these say."""
        import pandas

        series, label = _without_tokens(self.series(place), tokens), self.labels[place]
        api = pandas.api.types
        missing = series.isna().to_numpy()
        dtype = series.dtype
        plain = api.is_numeric_dtype(dtype) or api.is_datetime64_any_dtype(dtype)
        if not plain and not isinstance(dtype, pandas.CategoricalDtype):
            return self._of_words(series, place, asked, tokens)
        if missing.all():
            return Column(label, "text", missing, reason="holds nothing")
        known = series[~missing]
        if asked == "text" or known.nunique() == 1:
            return _kept(label, missing, known.iloc[0] if asked != "text" else None)
        if asked == "category" or isinstance(dtype, pandas.CategoricalDtype):
            return Column(label, "category", missing, series.astype("category"))
        if api.is_bool_dtype(dtype):
            return Column(label, "boolean", missing, series.astype("boolean"))
        if api.is_datetime64_any_dtype(dtype):
            return Column(label, "date", missing, series)
        return self._of_numbers(series, label, missing, asked)

    def _of_numbers(
        self, series: Any, label: str, missing: np.ndarray, asked: str | None
    ) -> Column:
        known = series[~missing]
        numbers = known.to_numpy(np.float64)
        if not np.isfinite(numbers).all():
            row = int(known.index[~np.isfinite(numbers)][0])
            raise ValueError(
                f"{self._where(row)}, column {label}: expected a finite number, got {series[row]}"
            )
        whole = bool((numbers == np.rint(numbers)).all())
        if asked == "integer" and not whole:
            raise ValueError(f"--kinds: column {label}: expected integers for integer")
        different = len(np.unique(numbers)) == len(series)
        if asked is None and whole and different and np.ptp(numbers) + 1 == len(numbers) > 2:
            return Column(label, "text", missing, reason="an id: integers, different in every row")
        if asked == "boolean" or (asked is None and set(numbers) == {0.0, 1.0}):
            if set(numbers) != {0.0, 1.0}:
                raise ValueError(f"--kinds: column {label}: expected 0 and 1 for boolean")
            return Column(label, "boolean", missing, series.astype("float64").astype("boolean"))
        kind = asked or ("integer" if whole else "number")
        fits = kind == "integer" and np.abs(numbers).max() < 2**63
        values = series.astype("Int64" if fits else "float64")
        # as text: the shortest that reads back as the same number, in float32 too
        digits = NumberForm.of(np.unique(known.to_numpy()).astype(str).tolist(), ".")
        return Column(label, kind, missing, values, decimals=digits.decimals_kept)

    def _of_words(
        self, series: Any, place: int, asked: str | None, tokens: frozenset[str]
    ) -> Column:
        texts = [
            "" if gone else str(v).strip() for v, gone in zip(series, series.isna(), strict=True)
        ]
        name = name_of(self.names, place)
        cells = Cells(self.labels[place], name, texts, self._where, tokens)
        column = recognise([cells], {0: asked} if asked else {})[0]
        if column.kind == "category":  # 1 and 3+ are a number and a word again
            known = np.flatnonzero(~column.missing)[::-1]
            column.form = Words({texts[row]: series.iloc[row] for row in known})
        return column

    def _where(self, row: int) -> str:
        """What messages call a row: of an Excel file as it counts them itself."""
        excel = self.ending == ".xlsx"
        return f"row {row + 1 + (self.names is not None) if excel else row}"


def frame_of(source: Any, fills: Fills) -> Any:
    """A pandas DataFrame of a table with cells filled in."""
    import pandas

    parts = []
    for place, column in enumerate(source.columns):
        series = source.series(place)
        own = fills.get(place, {})
        if own:
            series = series.copy()
            words = series.dtype == object or pandas.api.types.is_string_dtype(series.dtype)
            written = column.form is not None and words
            values = [column.form.text(v) if written else v for v in own.values()]
            if pandas.api.types.is_float_dtype(series.dtype):
                values = [float(value) for value in values]
            series.iloc[list(own)] = values
        parts.append(series.reset_index(drop=True))
    frame = pandas.concat(parts, axis=1)
    frame.columns = source.names or [str(place) for place in range(len(parts))]
    return frame


def frame_content(frames: Sequence[Any], out: Path) -> bytes:
    """What a file of that name holds for the frames, one below the other where there are several."""
    import pandas

    frame = frames[0]
    if len(frames) > 1:
        named = [own.assign(draw=number) for number, own in enumerate(frames, start=1)]
        frame = pandas.concat(named, ignore_index=True)
    file = io.BytesIO()
    if is_text(out):
        separator = "\t" if ".tsv" in out.suffixes else ","
        frame.to_csv(file, index=False, sep=separator, lineterminator="\n")
        return packed(file.getvalue(), out)
    match out.suffix.lower():
        case ".parquet":
            require("pyarrow", "tabular")
            frame.to_parquet(file, index=False)
        case ".xlsx":
            require("openpyxl", "tabular")
            frame.to_excel(file, index=False)
        case _:
            plain = all(isinstance(dtype, np.dtype) for dtype in frame.dtypes)
            dtype = np.result_type(*frame.dtypes) if plain else np.dtype(np.float64)
            dtype = dtype if dtype.kind in "fiub" else np.dtype(np.float64)
            numbers = np.stack([own.to_numpy(dtype, na_value=np.nan) for own in frames])
            np.save(file, numbers[0] if len(frames) == 1 else numbers, allow_pickle=False)
    return file.getvalue()


def _without_tokens(series: Any, tokens: frozenset[str]) -> Any:
    """A column with nothing where words stand for nothing; of numbers if that leaves some."""
    if series.dtype != object:
        return series
    empty = [isinstance(cell, str) and cell.strip() in tokens for cell in series]
    return series.mask(np.array(empty, bool)).infer_objects()


def _read(path: Path, options: Options) -> tuple[Any, list[str] | None, tuple[str, ...]]:
    pandas = require("pandas", "tabular")
    if path.suffix.lower() == ".parquet":
        require("pyarrow", "tabular")
        frame = pandas.read_parquet(path)
        return frame.reset_index(drop=True), [str(name) for name in frame.columns], ()
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise ValueError(f"expected numbers [N, D], got {array.dtype} {list(array.shape)}")
        return pandas.DataFrame(array), None, ()
    return _rows_of_sheet(path, options)


def _rows_of_sheet(path: Path, options: Options) -> tuple[Any, list[str] | None, tuple[str, ...]]:
    """The cells of the first sheet, its names, and what was assumed."""
    pandas = require("pandas", "tabular")
    book = require("openpyxl", "tabular").load_workbook(path, read_only=True, data_only=True)
    try:
        title, count = book.sheetnames[0], len(book.sheetnames)
        rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
    finally:
        book.close()
    width = max((len(row) for row in rows), default=0)
    rows = [row + [None] * (width - len(row)) for row in rows]
    if not rows:
        raise ValueError("an empty sheet")
    words = [isinstance(cell, str) for cell in rows[0]]
    header = all(words) if options.header is None else options.header
    names = ["" if cell is None else str(cell) for cell in rows[0]] if header else None
    frame = pandas.DataFrame(rows[1:] if header else rows)
    assumed = [] if count == 1 else [f"the first of {count} sheets, {title!r}"]
    if options.header is None:
        other = "--no-header if it is data" if header else "--header if it holds names"
        assumed.append(f"the first row {'holds names' if header else 'is data'} ({other})")
    return frame.infer_objects(), names, tuple(assumed)


def _sheet(path: Path, frame: Any, fills: Fills, header: bool) -> bytes:
    """The Excel file with cells filled in, and all else in it as it was."""
    book = require("openpyxl", "tabular").load_workbook(path)
    sheet = book.worksheets[0]
    for column, own in fills.items():
        for row in own:
            value = frame.iloc[row, column]
            value = value.item() if isinstance(value, np.generic) else value
            sheet.cell(row + 1 + header, column + 1).value = value
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _kept(label: str, missing: np.ndarray, value: Any) -> Column:
    """A column that is not modelled: of one value, which fills it, or passed through."""
    if value is None:
        return Column(label, "text", missing, reason="--kinds")
    return Column(label, "text", missing, reason=f"one value, {value!r}", constant=value)
