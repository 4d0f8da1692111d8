"""Tests of the Triton kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreted`.

The variable must be set before anything imports triton, and changes it for the whole process: so
these tests have a process of their own, and one without the variable does not collect them.
"""

import os

import numpy as np
import pytest
import torch

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
    from triton.runtime import interpreter

    call, seen = interpreter.InterpretedFunction.__call__, set()

    def called(self, *args, **kwargs):
        """A function that a kernel calls.

        Triton puts numpy under the language at every such call, a third of the time of these tests. A
        launch has done that for `triton.language`; what a module has of `triton.language.core` stays.
        """
        if self.fn.__module__ in seen:
            return self.rewrite()(*args, **kwargs)
        seen.add(self.fn.__module__)
        return call(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = called


@pytest.fixture
def watched_memory(monkeypatch):
    """Every address that a kernel reads or writes must lie in one of the tensors in this list.

    What a launcher makes is in it.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    from rvi_fast.kernels._common import row_error

    tensors = [row_error(torch.device("cpu"))]

    def listed(make):
        def made(*arguments, **options):
            tensors.append(make(*arguments, **options))
            return tensors[-1]

        return made

    def watch(name, mask_position):
        method = getattr(InterpreterBuilder, name)

        def watched(self, pointers, *arguments):
            mask = arguments[mask_position].data.astype(bool)
            addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape)]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            inside = np.zeros(addresses.shape, bool)
            for tensor in tensors:
                start, length = tensor.data_ptr(), tensor.numel() * tensor.element_size()
                inside |= (addresses >= start) & (addresses + size <= start + length)
            assert inside.all(), f"{name} outside all tensors"
            return method(self, pointers, *arguments)

        monkeypatch.setattr(InterpreterBuilder, name, watched)

    watch("create_masked_load", 0)
    watch("create_masked_store", 1)
    monkeypatch.setattr(torch.Tensor, "new_empty", listed(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty", listed(torch.empty))
    return tensors
