import pytest
import torch

from rvi_fast import kernels, testing

INTERPRETER = testing.Implementation("triton-interpreter", kernels)
CONTRACT = testing.SumGradientsContract()


class TestContract(testing.SumGradientsContract):
    implementations = (INTERPRETER,)


@pytest.mark.parametrize("case", TestContract.cases, ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(case, watched_memory):
    arguments = CONTRACT.arguments("sum_gradients", case)
    watched_memory += arguments
    kernels.sum_gradients(*arguments)
    assert torch.equal(arguments[1], CONTRACT.inputs(case)["parts"])
