"""Files that outlive a process: written whole or not at all, and on disk once they have their name.

A file is written beside its place under a name of its own, `.NAME.<8 hex digits>.partial`, which nobody
can have put there before: it is created, never opened, and a symbolic link is not followed. It takes
its place by a rename, after its last byte is on disk, and the directory is on disk when the call
returns. What a killed process has left is removed by the next that writes the same file: whoever is
still at work holds a lock on it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

StrPath = str | os.PathLike[str]

# absent on Windows: there neither links nor pipes lie in wait, and nothing is inherited
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial", re.DOTALL)
_SEAL = b'{"sha256": "'  # opens a sealed text; then the 64 hex digits, of all that follows them
# bytes of a text that is read as a whole: a manifest, a description, a history
MOST_TEXT = 1 << 28


class CheckpointError(ValueError):
    """A file of a run or of tables that cannot be trusted: `path`, and the `reason` in words."""

    def __init__(self, path: StrPath, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over, an old one not removed, or damage cannot be noticed."""


class ForeignFile(OSError):
    """A link, a pipe or a second name of a file in the place of a file."""


@contextmanager
def naming(path: StrPath) -> Iterator[None]:
    """An OSError of a write or a sync knows no path: it gets this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def durable(path: StrPath) -> Iterator[IO[bytes]]:
    """A new file, open for writing; past the with block its bytes are on disk.

    Raises:
        FileExistsError: something has that name, be it a link to nowhere.
        OSError: as the system raised it, with the path named.
    """
    with naming(path), _create(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def lengthen(path: StrPath, size: int) -> None:
    """Makes a file `size` bytes long, its new bytes 0; they have their room on the disk afterwards.

    Raises:
        OSError: as the system raised it, with the path named; the file may be longer then.
    """
    with naming(path), open(path, "r+b") as file:
        before = file.seek(0, os.SEEK_END)
        file.truncate(size)
        if size > before and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), before, size - before)
        os.fsync(file.fileno())


@contextmanager
def amending(path: StrPath) -> Iterator[IO[bytes]]:
    """A file that is there, open for writing into its middle; past the with block its bytes are on disk.

    Raises:
        OSError: EINVAL for a link and for what is no plain file of one name; or as the system raised it,
            with the path named: which of the bytes are there then, nobody knows.
    """
    with naming(path), open_own(path) as file:
        yield file
        os.fsync(file.fileno())


def write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    """Writes all of what it is given, of which an unbuffered write may take a part."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@contextmanager
def replacing(path: StrPath, *, sweep: bool = True) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the with block ends, and else disappears.

    Args:
        path: the file, which may be there; its directory has to be. A symbolic link is replaced, not
            followed.
        sweep: remove what killed processes have left of the same file, which takes a look at the
            whole directory.

    Raises:
        OSError: as the system raised it, with a path named; `path` is then as it was, unless it was
            the sync of its directory that failed.
    """
    path = Path(path)
    if sweep:
        remove_partial(path.parent, path.name)
    with naming(path):
        file = _locked_partial(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":  # which renames no open file
                    file.close()
                os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise
    sync_directory(path.parent)


def rename(source: StrPath, path: StrPath) -> None:
    """Gives a file that is on disk the place of another one in its directory, on disk too at the end.

    Raises:
        OSError: as the system raised it; `path` is then as it was.
    """
    os.replace(source, path)
    sync_directory(Path(path).parent)


def write_together(content: Mapping[Path, bytes]) -> None:
    """Replaces several files, each as `replacing` does, and none before all are written."""
    with ExitStack() as stack:
        for path, own in content.items():
            stack.enter_context(replacing(path)).write(own)


def write_bytes(path: StrPath, content: bytes) -> None:
    """Replaces a file by this content, as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: StrPath, text: str) -> None:
    """Replaces a file by this text in UTF-8, as `replacing` does."""
    write_bytes(path, text.encode())


def remove_partial(directory: StrPath, name: str) -> None:
    """Removes what killed processes have left of a file of this name; never raises."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _PARTIAL.fullmatch(entry.name)
            if match is None or match[1] != name:
                continue
            with suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    with open_own(entry.path) as file:
                        lock(file)  # BlockingIOError: somebody is at work on it
                        os.unlink(entry.path)


def open_own(path: StrPath, *, create: bool = False, append: bool = False) -> IO[bytes]:
    """Opens a file for reading and writing, if it is a file of this directory and nothing else.

    Args:
        path: what a foreign directory may have made a link, a pipe or a second name of another file.
        create: make an empty file where there is none.
        append: write to the end alone.

    Raises:
        OSError: EINVAL for a link and for what is no plain file of one name.
    """
    flags = os.O_RDWR | _NO_FOLLOW | _BINARY
    flags |= (os.O_CREAT if create else 0) | (os.O_APPEND if append else 0)
    foreign = ForeignFile(errno.EINVAL, "expected a plain file of one name, no link", str(path))
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise foreign from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise foreign
    return open(descriptor, "ab+" if append else "rb+", buffering=0)


def read_bytes(path: StrPath, most: int = MOST_TEXT) -> bytes:
    """The whole of a plain file.

    Raises:
        OSError: EINVAL for what is no plain file, which could block; EFBIG beyond `most` bytes; or as
            the system raised it.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    with naming(path), os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "expected a plain file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"expected at most {most} bytes", str(path))
        return file.read(most)


def sync_directory(path: StrPath) -> None:
    """Returns when the names in a directory are on disk."""
    if os.name == "nt":  # which cannot open a directory, and orders its renames itself
        return
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(path: StrPath) -> None:
    """Returns when all that lies below a directory is on disk, and its names are.

    Raises:
        OSError: as the system raised it, with the path named.
    """
    for folder, _, names in os.walk(path):
        for name in names:
            own = Path(folder, name)
            with naming(own), open(own, "rb+") as file:
                os.fsync(file.fileno())
        sync_directory(folder)


def lock(file: IO[bytes]) -> None:
    """Locks a file for this open file alone, until it is closed, however the process ends.

    Raises:
        BlockingIOError, PermissionError: it is locked.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # a lock hides its bytes from readers there: lock one past the text
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sealed(value: Mapping[str, Any]) -> bytes:
    """A mapping as JSON whose first entry, "sha256", is the hash of all that follows it.

    Args:
        value: what the json module can write, with at least one entry.
    """
    # the seal brings its own opening brace: the whole is still JSON
    body = b'",' + json.dumps(dict(value), indent=1).encode().removeprefix(b"{")
    return _SEAL + hashlib.sha256(body).hexdigest().encode() + body


def unsealed(content: bytes) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        ValueError: a byte of it is another one.
    """
    end = len(_SEAL) + 64
    if content[:end] != _SEAL + hashlib.sha256(content[end:]).hexdigest().encode():
        raise ValueError("does not match its own SHA-256")
    value = json.loads(content)
    del value["sha256"]
    return value


def append_line(path: StrPath, record: Mapping[str, Any]) -> None:
    """Appends one JSON object to a file of lines; non-finite floats become null.

    A piece of a line that a killed process has left does not stick to the new one, and a link becomes a
    file of its own: what it leads to is not written to.

    Raises:
        OSError: as the system raised it, with the path named.
        ValueError: a line before is no JSON object; names its number.
    """
    with naming(path), suppress(ForeignFile), open_own(path, create=True, append=True) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) in (b"\n", b""):
            write_all(file, _line(record))
            return
    rewrite_lines(path, [*read_lines(path), record])


def append_text(path: StrPath, text: str) -> None:
    """Appends to a plain file, which is made where it is missing; it is not waited for.

    Raises:
        OSError: as the system raised it, with the path named; EINVAL for a link.
    """
    with naming(path), open_own(path, create=True, append=True) as file:
        write_all(file, text.encode())


def rewrite_lines(path: StrPath, records: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of JSON lines as a whole: a kill leaves the old file or the new one."""
    with replacing(path) as file:
        file.writelines(map(_line, records))


def read_lines(path: StrPath) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without a last one that was torn off by a kill.

    Raises:
        ValueError: a line is not a JSON object; names its number.
    """
    lines = read_bytes(path).split(b"\n") if os.path.exists(path) else [b""]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode())
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, got {type(record).__name__}")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline follows: empty, or torn
                break
            raise ValueError(f"line {number} is not a JSON object: {error}") from error
        records.append(record)
    return records


def _create(path: StrPath) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
    return open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o666))


def _locked_partial(path: Path) -> IO[bytes]:
    """A new file beside `path`, locked: a process that removes what is left over keeps off it."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with suppress(FileExistsError):
            file = _create(name)
            with suppress(OSError):  # a file system without locks
                lock(file)
            # between the two lines above it may have been taken for a leftover
            if os.path.exists(name):
                return file
            file.close()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(_finite(dict(record)), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value
