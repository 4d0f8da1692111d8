import torch

from rvi_fast import kernels, testing

INTERPRETER = testing.Implementation("triton-interpreter", kernels)


class TestContract(testing.AdamStepContract):
    implementations = (INTERPRETER,)
    dtypes = (torch.float32,)


def test_programs_that_count_themselves_leave_no_trace_in_the_step():
    contract = testing.AdamStepContract()
    inputs = contract.inputs("adam_step", contract.cases[3], torch.float32)
    for step in (0, 2**31 - 1):
        inputs["step"] = torch.tensor([step])
        assert contract.call(INTERPRETER, "adam_step", inputs)["step"].tolist() == [step + 1]


def test_tables_in_other_dtypes_are_left_to_the_reference():
    contract = testing.AdamStepContract()
    inputs = contract.inputs("adam_step", contract.cases[1], torch.float64)
    arguments = [inputs[name] for name in testing._arguments("adam_step")]
    assert kernels.adam_step(*arguments) is NotImplemented
