from rvi_fast import kernels, testing


class TestContract(testing.GaussianLogLikelihoodContract):
    implementations = (testing.Implementation("triton-interpreter", kernels),)
