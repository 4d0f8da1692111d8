"""What a directory says of the tables in it: `tables.json`, written when they are finished."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import CheckpointError, read_bytes, unsealed

DESCRIPTION = "tables.json"


def read_description(directory: Path, known: Iterable[str]) -> dict[str, Any] | None:
    """The description of the tables in a directory; None where they are not finished.

    Args:
        directory: where they lie.
        known: the names of its entries, beside those of the file itself.

    Raises:
        CheckpointError: it is damaged.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        return None
    try:
        content = read_bytes(path)
        try:
            return unsealed(content)
        except ValueError:
            # 0.1.0 knew no seal, and no other entries than these
            found = json.loads(content)
            if not isinstance(found, dict) or not {*found} <= {*known, "format", "drawn"}:
                raise
            return found
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
