import torch

from rvi_fast import kernels, testing

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class TestContract(testing.GaussianLogLikelihoodContract):
    implementations = (testing.Implementation("triton-interpreter", kernels),)
    dtypes = FLOATS


def test_float64_is_left_to_the_reference():
    contract = testing.GaussianLogLikelihoodContract()
    for function in contract.functions:
        inputs = contract.inputs(function, contract.cases[1], torch.float64)
        arguments = [inputs[name] for name in testing._arguments(function)]
        assert getattr(kernels, function)(*arguments) is NotImplemented
