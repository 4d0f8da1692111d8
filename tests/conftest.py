"""Settings of all tests."""

import os

import torch

# the tests' tensors are small: more threads only wait for each other on a busy machine
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
