"""How many kernels a training step launches on a GPU, counted without one.

Tensors have no memory: each launch of a Triton kernel, and each function of torch that gives or changes
values, is a node of the graph that a step is captured in.
"""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter runs kernels where they are launched", allow_module_level=True)

import kernel_budget
import numpy as np
import torch
from launches import stand_in_for_cuda, stand_ins
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

import rvi_fast
from rvi_fast import kernels
from rvi_fast.likelihoods import fused
from rvi_fast.optim import row_adam
from rvi_fast.optim import shared_adam as shared
from rvi_fast.posteriors import relay
from rvi_fast.reference.laws import LAWS
from rvi_fast.training.inputs import feed
from rvi_fast.training.inputs.feed import HostInputs, Visit
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop.ahead import STEPS
from rvi_fast.training.loop.capture import BatchStep
from rvi_fast.training.loop.fused_step import LAUNCHES, FusedStep, fits, launches_on
from rvi_fast.training.loop.step import make_step

N, D, B = 10_000, 784, 256
META = torch.device("meta")


class Nodes(TorchDispatchMode):
    """Within it, names of what is launched are added to a list; views and new memory are not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        library, _, name = schema.name.partition("::")
        if library == "aten" and not view and not name.startswith(("empty", "new_empty")):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch):
    """Within it, kernels are counted instead of compiled, and so is what torch launches."""
    with monkeypatch.context() as patch, Nodes() as nodes:
        patch.setattr(
            JITFunction, "run", lambda self, *_, **__: nodes.names.append(self.fn.__name__)
        )
        yield nodes.names


@pytest.fixture(autouse=True)
def kernels_serve(monkeypatch):
    serve_without_memory(monkeypatch)


def serve_without_memory(monkeypatch):
    """Tensors without memory are served as those of a GPU are."""

    def served(name):
        def call(*arguments, **keywords):
            found = getattr(kernels, name)(*arguments, **keywords)
            assert found is not NotImplemented, f"{name}: left to the reference"
            return found

        return call

    names = [name for name in kernels.__all__ if name not in ("row_error", "compiling")]
    ops = SimpleNamespace(**{name: served(name) for name in names})
    for module in (relay, row_adam, shared, fused):
        monkeypatch.setattr(module, "ops", ops)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which no mode has there
    kernels.row_error(META)


def standard(law="gaussian", **options):
    """The standard model, its optimisers and its data, as `fit` makes them, without memory."""
    model = rvi_fast.models.rvi(N, D, likelihood=law, **options).to(META)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior)
    others = [p for name, p in model.named_parameters() if not name.startswith("posterior.")]
    groups = [{"params": [model.posterior.relays], "lr": 1e-3}, {"params": others, "lr": 1e-3}]
    return model, rows, shared.shared_adam(groups)


def data(kind):
    x = torch.empty((N, D), device=META, dtype=torch.uint8 if kind == "pixels" else torch.float32)
    return Inputs(
        x, torch.empty((N, D), device=META, dtype=torch.bool) if kind == "pixels" else None
    )


@pytest.mark.parametrize(("kind", "number"), [("pixels", 42), ("numbers", 41)])
def test_the_step_of_any_model_is_41_launches_and_one_for_a_mask(monkeypatch, kind, number):
    run = BatchStep(make_step(*standard()), data(kind), META, torch.float32)
    index = torch.empty(B, device=META, dtype=torch.int64)
    with counted(monkeypatch) as names:
        run.launch(index, B)  # sets up what is set up once
        names.clear()
        run.launch(index, B)
    assert len(names) == number, names


@pytest.mark.parametrize("kind", ["pixels", "numbers"])
@pytest.mark.parametrize("law", LAWS)
def test_nothing_is_launched_between_the_six(monkeypatch, kind, law):
    made, inputs = standard(law), data(kind)
    step = make_step(*made)
    assert fits(step, inputs)
    index = torch.empty(B, device=META, dtype=torch.int64)
    with counted(monkeypatch) as names:
        run = FusedStep(step, inputs, B, stand_ins(names))
        run.launch(index, B)
        names.clear()
        run.launch(index, B)
    assert names == [*LAUNCHES]


@pytest.mark.parametrize("kind", ["pixels", "numbers"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("batch", [B, 4096])
def test_a_step_of_the_standard_kind_is_six_kernels(monkeypatch, kind, law, batch):
    made, inputs = standard(law), data(kind)
    step = make_step(*made)
    assert fits(step, inputs)
    index = torch.empty(batch, device=META, dtype=torch.int64)
    with counted(monkeypatch) as names:
        run = FusedStep(step, inputs, batch, kernels)
        run.launch(index, batch)
        names.clear()
        run.launch(index, batch)
    assert names == [
        "_catch_up_and_select_kernel",
        "_relay_decode_kernel",
        "_linear_log_likelihood_rows_kernel",
        "_linear_log_likelihood_features_kernel",
        "_backward_to_rows_kernel",
        "_finish_step_kernel",
    ]


@pytest.mark.parametrize("kind", ["pixels", "numbers"])
def test_data_that_the_host_reads_take_no_launch_more(monkeypatch, kind):
    made, held = standard(), data(kind)
    source = SimpleNamespace(read=lambda rows: held.batch(torch.from_numpy(rows).to(META)))
    stand_in_for_cuda(monkeypatch)
    inputs = HostInputs(source, META, torch.float32)
    monkeypatch.setattr(feed, "convert", lambda x, mask, *_: (x, mask))  # looks at values
    inputs.reserve(B)
    step = make_step(*made)
    assert fits(step, inputs)
    index, places = torch.empty(B, device=META, dtype=torch.int64), []
    with counted(monkeypatch) as names:
        run = FusedStep(step, inputs, B, stand_ins(names))
        run.launch(index, B)
        for _ in range(4):
            inputs._landing.take(source.read(np.arange(B)))
            names.clear()
            run.launch(index, B)
            assert names == [*LAUNCHES]
            places.append(run.place)
    assert places == [1, 0, 1, 0]


def test_a_smaller_batch_compiles_nothing_new(request, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))
    run = FusedStep(make_step(*standard()), data("pixels"), B, kernels)
    with kernel_budget.recorded(90) as compiled:
        found = []
        for batch in (B, 100, 255, 16, 1):
            compiled.clear()
            run.launch(torch.empty(batch, device=META, dtype=torch.int64), B)
            found.append([kernel.hash for kernel in compiled])
    assert len(found[0]) == 6
    assert all(hashes == found[0] for hashes in found)


def test_kernels_are_what_a_gpu_is_served_with():
    assert launches_on(torch.device("cuda")) is kernels


def test_rows_in_slots_take_one_launch_more(monkeypatch):
    made = standard()
    index = torch.empty(B, device=META, dtype=torch.int64)
    with counted(monkeypatch) as names:
        run = FusedStep(make_step(*made), data("pixels"), B, stand_ins(names), lambda rows: rows)
        run.launch(index, B)
        names.clear()
        run.launch(index, B)
    assert names == ["index_select", *LAUNCHES]


def test_beside_its_six_launches_an_epoch_copies_row_numbers_once_in_64_steps(monkeypatch):
    made, inputs = standard(), data("pixels")
    visits = [Visit(torch.empty(B, device=META, dtype=torch.int64), 0) for _ in range(2 * STEPS)]
    with counted(monkeypatch) as names:
        run = FusedStep(make_step(*made), inputs, B, stand_ins(names))
        run(visits[0].rows, B)  # counts one of the 64
        names.clear()
        for visit in run.ahead(iter(visits)):
            run(visit.rows, B)
    beside = [name for name in names if name not in LAUNCHES]
    assert len(names) - len(beside) == 6 * 2 * STEPS
    assert beside == ["cat"] * 3


@pytest.mark.parametrize("batch", [B, 4096])
def test_the_estimate_of_memory_has_room_for_the_pieces_of_the_gradient(batch):
    step = FusedStep(
        make_step(*standard()), data("numbers"), batch, launches_on(torch.device("cuda"))
    )
    on_a_gpu, elsewhere = (
        rvi_fast.estimate_memory(N, D, batch_size=batch, device=device).step
        for device in ("cuda", "cpu")
    )
    # parameters begin at multiples of 32
    assert 0.99 * step._grads.nbytes < on_a_gpu - elsewhere <= step._grads.nbytes
