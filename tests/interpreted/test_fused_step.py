"""Three training steps of six kernels, against the same steps in plain torch."""

from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from common import Rows

import rvi_fast
from rvi_fast import kernels, testing
from rvi_fast.kernels._common import row_error
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.reference import fused_step
from rvi_fast.reference.laws import LAWS
from rvi_fast.training.inputs import feed
from rvi_fast.training.inputs.feed import Visit
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop.fused_step import LAUNCHES, ROOM, SUM, FusedStep, fits
from rvi_fast.training.loop.step import make_step

N, D, T, B = 61, 70, 20, 24
STEPS = 3
MODELS = {
    "standard": {},
    "clusters": {"form": "cluster"},
    "no group": {"groups": ()},
    **{f"the {law} law": {"likelihood": law} for law in LAWS if law != "gaussian"},
    "no hidden layer": {"hidden": ()},
    "three hidden layers": {"hidden": (20, 33, 16)},
}


def data(kind, law):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N, D, generator=generator)
    if not LAWS[law].scaled:
        x = x.round()
    if kind == "pixels":
        return Inputs((255 * x).to(torch.uint8), torch.rand(N, D, generator=generator) < 0.6)
    return Inputs(x.masked_fill(torch.rand(N, D, generator=generator) < 0.3, torch.nan), None)


def trained(launches, inputs, dtype, options, moment_dtype=None, room=0):
    """What three steps give and leave behind, the last of them on a short batch.

    With room for rows that are not there, and one of the batches empty.
    """
    torch.manual_seed(3)
    given = {"latent_dim": T, "hidden": (33, 20), "groups": (9, 33)} | options
    model = rvi_fast.models.rvi(N, D, **given).to(dtype)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior, lr=3e-2, moment_dtype=moment_dtype)
    others = [p for name, p in model.named_parameters() if not name.startswith("posterior.")]
    groups = [{"params": [model.posterior.relays], "lr": 2e-2}, {"params": others, "lr": 1e-2}]
    shared = shared_adam(groups)
    step = make_step(model, rows, shared)
    assert dtype == torch.float64 or fits(step, inputs)
    if dtype == torch.float64 and inputs.mask is None:
        inputs = Inputs(inputs.x.to(dtype), None)
    run = FusedStep(step, inputs, B, launches)
    run.seed.fill_(7)
    run.kl_weight.fill_(0.3)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    batches = order.split(B)[:STEPS]
    assert [len(batch) for batch in batches] == [B, B, N - 2 * B]
    if room:
        batches = (batches[0], batches[1][:5], order[:0], batches[2])
    visits = [Visit(batch, 0, room) for batch in batches]
    results = [run(visit.rows, B) for visit in run.ahead(iter(visits)) if len(visit.rows) or room]
    tables = {name: table.detach() for name, table in model.named_parameters()}
    tables["posterior.rows"] = rows.table()
    return {
        "results": torch.stack(results),
        **tables,
        **{name: rows.raw_tables()[name] for name in ("exp_avg", "exp_avg_sq", "row_step")},
        "clock": rows.raw_state()["clock"],
        "history": rows.raw_state()["history"],
        "shared exp_avg": shared.exp_avg,
        "shared exp_avg_sq": shared.exp_avg_sq,
        "shared steps": shared.steps,
    }


def assert_as_accurate_as_plain_torch(kind, options):
    inputs = data(kind, options.get("likelihood", "gaussian"))
    got = trained(kernels, inputs, torch.float32, options)
    yardstick = trained(fused_step, inputs, torch.float32, options)
    exact = trained(fused_step, inputs, torch.float64, options)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        testing.compare.assert_as_accurate(name, value, exact[name], yardstick[name])


@pytest.mark.parametrize("kind", ["numbers", "pixels"])
def test_batches_that_the_host_reads_are_stepped_as_tables_of_the_device(monkeypatch, kind):
    for name in ("Stream", "current_stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(feed, "lands_on", lambda _: True)
    held = data(kind, "gaussian")
    landing = feed.HostInputs(Rows(held), torch.device("cpu"), torch.float32)
    landing.reserve(B)
    expected = trained(kernels, held, torch.float32, {})
    testing.assert_bit_equal(trained(kernels, landing, torch.float32, {}), expected)


@pytest.mark.parametrize("kind", ["numbers", "pixels"])
def test_rows_that_are_not_there_change_nothing(kind):
    error, inputs = row_error(torch.device("cpu")), data(kind, "gaussian")
    error.zero_()
    got = trained(kernels, inputs, torch.float32, {}, room=B)
    assert not error.any()
    yardstick = trained(fused_step, inputs, torch.float32, {}, room=B)
    exact = trained(fused_step, inputs, torch.float64, {}, room=B)
    for name, value in got.items():
        testing.compare.assert_as_accurate(name, value, exact[name], yardstick[name])


def test_the_kernels_have_all_that_a_step_launches():
    assert all(hasattr(kernels, name) for name in (*LAUNCHES, *ROOM, SUM))


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_three_steps_are_those_of_plain_torch(options):
    assert_as_accurate_as_plain_torch("numbers", options)


@pytest.mark.parametrize("law", LAWS)
def test_masked_pixels_are_stepped_as_in_plain_torch(law):
    assert_as_accurate_as_plain_torch("pixels", {"likelihood": law})
