"""Settings of all tests."""

import os
import sys

import pytest
import torch

# the tests' tensors are small: more threads only wait for each other on a busy machine
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def forget_compiled_code():
    """What one test compiled must not count towards the recompile limit of the next."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
