"""opcheck over layouts, dtypes and implementations: outputs lie as the compiler was told."""

import pytest
import torch

from rvi_fast import RelayPosterior, ops, reference, testing
from rvi_fast.testing import RelaySampleCase

CASES = [
    RelaySampleCase(6, batch, latent_dim, groups, form=form)
    for batch, latent_dim, groups, form in (
        (3, 5, (), "linear"),
        (3, 4, (), "linear"),
        (0, 4, (), "linear"),
        (1, 3, (), "mixture"),
        (1, 4, (7,), "linear"),
        (0, 5, (7, 33), "linear"),
        (3, 5, (7, 33), "cluster"),
        (3, 5, (7, 33, 2), "mixture"),
    )
]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("implementation", ["reference", "installed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_and_dtype_passes_opcheck(case, dtype, implementation, monkeypatch):
    if implementation == "reference":
        monkeypatch.setattr(ops.table, "implementation", lambda device_type: reference)
    contract = testing.RelaySampleContract()
    for function in contract.functions:
        inputs = contract.inputs(function, case, torch.float32)
        tables = {"rows", "relays", "grad_z"}
        inputs |= {name: inputs[name].to(dtype) for name in tables}
        arguments = tuple(inputs[name] for name in testing._arguments(function))
        op = getattr(ops.ops, function)
        assert all(result.is_contiguous() for result in op(*arguments))
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_posterior_without_groups_compiles(dtype):
    posterior = RelayPosterior(20, 3, groups=(), dtype=dtype)
    index = torch.tensor([1, 19, 1])
    compiled = torch.compile(posterior, fullgraph=True)
    for got, expected in zip(compiled(index, seed=3), posterior(index, seed=3), strict=True):
        torch.testing.assert_close(got, expected)
