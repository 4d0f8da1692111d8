"""Tests of the Triton kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreted`.

The variable must be set before anything imports triton, and changes it for the whole process: so
these tests have a process of their own, and one without the variable does not collect them.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    try:
        import triton
    except ImportError as error:
        raise pytest.UsageError(
            f"TRITON_INTERPRET=1: the interpreter is part of triton, which is not installed: {error}"
        ) from error
    assert triton.knobs.runtime.interpret
