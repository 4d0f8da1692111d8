import rvi_fast.kernels
from rvi_fast import testing


class TestContract(testing.RelaySampleContract):
    implementations = (
        testing.Implementation("triton-interpreter", rvi_fast.kernels, device="cpu"),
    )
