import torch

from rvi_fast import kernels, testing


class TestContract(testing.RowAdamContract):
    implementations = (testing.Implementation("triton-interpreter", kernels),)
    dtypes = (torch.float32,)
