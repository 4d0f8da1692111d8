"""From the bytes of a file to its text and back: packed or not, in which encoding."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from pathlib import Path

from ...data.formats.cells import MARKS

TEXT = (".csv", ".tsv", ".txt")
PACKED = (".gz", ".bz2", ".xz", ".zip")


def unpacked(path: Path) -> bytes:
    """The content of a file, of the one in a .zip archive, or of what gzip, bzip2 or xz has packed."""
    written = path.read_bytes()
    match path.suffix.lower():
        case ".gz":
            return gzip.decompress(written)
        case ".bz2":
            return bz2.decompress(written)
        case ".xz":
            return lzma.decompress(written)
        case ".zip":
            with zipfile.ZipFile(io.BytesIO(written)) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise ValueError(
                        f"expected an archive of one file, got {len(names)}: {names[:5]}"
                    )
                return archive.read(names[0])
    return written


def packed(content: bytes, path: Path) -> bytes:
    """What a file of that name holds for this content."""
    match path.suffix.lower():
        case ".gz":
            return gzip.compress(content, mtime=0)
        case ".bz2":
            return bz2.compress(content)
        case ".xz":
            return lzma.compress(content)
        case ".zip":
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(path.stem, content)
            return file.getvalue()
    return content


def ending_of(path: Path) -> str:
    """What the name ends in, without what says that it is packed."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def is_text(path: Path) -> bool:
    """Whether a file of that name holds text."""
    return ending_of(path) in TEXT


def decoded(written: bytes, encoding: str | None) -> tuple[str, str, bytes]:
    """The text of a file, its encoding, and the byte-order mark before it."""
    mark, marked = next((m for m in MARKS if written.startswith(m[0])), (b"", None))
    body = written[len(mark) :]
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(
                f"--encoding: expected one that Python knows, got {encoding!r}"
            ) from None
    chosen = marked or encoding
    tried = [chosen] if chosen else _encodings_of(body)
    for name in tried:
        try:
            text = body.decode(name)
        except UnicodeDecodeError as error:
            if name != tried[-1]:
                continue
            line = body[: error.start].count(b"\n") + 1
            raise ValueError(
                f"line {line}: not {name} text ({error.reason}); see --encoding"
            ) from None
        if "\0" in text:
            raise ValueError("holds NUL characters: not a text file, or of another --encoding")
        if text.encode(name) != body:
            raise ValueError(f"{name}: what it decodes does not encode to the same bytes")
        return text, name, mark
    raise AssertionError("the last encoding decodes or raises")


def _encodings_of(body: bytes) -> list[str]:
    """Encodings to try in turn, for a text without a byte-order mark."""
    sample = body[:4096]
    zeros = [sample[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(sample) // 5:  # Latin letters in two bytes each: every other one is 0
        return ["utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"]
    return ["utf-8", "cp1252", "latin-1"]
