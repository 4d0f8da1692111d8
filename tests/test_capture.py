"""A step on CUDA never waits for the device: it can be captured in a CUDA graph.

Shown without one: under fake tensors of device "cuda" whatever reads a value back raises. Autograd
itself needs a CUDA build of torch, so the step shown is the one that does without.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import Items
from launches import Graph, capture_functions, stand_in_for_cuda, stand_ins
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode

import rvi_fast
from rvi_fast import testing
from rvi_fast.optim import row_adam
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.training.inputs.feed import HostInputs, Visit
from rvi_fast.training.inputs.prepare import Inputs, prepare
from rvi_fast.training.loop.capture import BatchStep, CapturedStep
from rvi_fast.training.loop.fused_step import FusedStep, fits
from rvi_fast.training.loop.step import DirectStep, LinearChain, make_step
from rvi_fast.training.places.staging import StagedStep, Staging

N, D, T = 100, 12, 8
CUDA = torch.device("cuda", 0)


class WithoutCuda(TorchFunctionMode):
    """What asks for a CUDA build of torch on its way to the op: indexing, and copies on the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__:
            return self.item_of(*args)
        if function is torch.Tensor.__setitem__:
            return self.item_of(*args[:2]).fill_(args[2])
        if getattr(function, "__name__", "") == "__set__":
            return None  # parameter.data = value
        if function is torch.Tensor.copy_ and all(tensor.is_cuda for tensor in args):
            return args[0]
        return function(*args, **(kwargs or {}))

    def item_of(self, tensor, key):
        dimension = 0
        for part in key if isinstance(key, tuple) else (key,):
            if part is None:
                tensor = tensor.unsqueeze(dimension)
            elif isinstance(part, int):
                tensor = tensor.select(dimension, part)
                continue
            elif isinstance(part, slice):
                tensor = torch.ops.aten.slice(tensor, dimension, part.start, part.stop)
            else:
                assert key is part
                tensor = torch.ops.aten.index(tensor, [part])
            dimension += 1
        return tensor


@pytest.fixture(autouse=True)
def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**40, 2**40))


@contextmanager
def step_on_cuda(mode="dense", *, pixels=False, storage="device", fused=False):
    """A step of a model without values on a device that is not there."""
    model = rvi_fast.models.LatentModel(
        rvi_fast.RelayPosterior(N, T, groups=(5, 9), sparse=True, storage=storage),
        nn.Sequential(nn.Linear(T, 16), nn.ReLU(), nn.Linear(16, D)),
        rvi_fast.GaussianLikelihood(D),
    )
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    with FakeTensorMode(), WithoutCuda():
        for name, shape in shapes.items():
            module, _, own = name.rpartition(".")
            staged = storage != "device" and own == "rows"
            parameter = nn.Parameter(torch.empty(shape, device="cpu" if staged else CUDA))
            model.get_submodule(module)._parameters[own] = parameter
        rows = rvi_fast.optim.RowAdam(model.posterior, mode=mode)
        rows.reserve(10)
        others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
        shared = shared_adam([{"params": others, "lr": 0.01}])
        staging = None
        if model.posterior.staged:
            staging = Staging(model, rows, 5, 16)
        step = make_step(staging.model if staging else model, rows, shared)
        assert isinstance(step, DirectStep)
        assert isinstance(step.decoder, LinearChain)
        x = torch.rand(N, D, device=CUDA)
        inputs = Inputs((255 * x).to(torch.uint8), x > 0.5) if pixels else Inputs(x, None)
        if fused:
            assert fits(step, inputs)
            yield FusedStep(step, inputs, 16, stand_ins([]))
            return
        if staging is None:
            yield BatchStep(step, inputs, CUDA, torch.float32)
            return
        with rows.lent(staging.posterior, staging.slots):
            yield BatchStep(StagedStep(staging, step), inputs, CUDA, torch.float32)


@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
@pytest.mark.parametrize("pixels", [False, True])
def test_no_part_of_a_step_waits_for_the_device(mode, pixels):
    with step_on_cuda(mode, pixels=pixels) as run:
        for size in (16, 16, 7):
            result = run(torch.arange(size, device=CUDA), 16)
            assert (result.device, result.shape) == (CUDA, (3,))


@pytest.mark.parametrize("pixels", [False, True])
def test_nothing_beside_six_launches_waits_for_the_device(monkeypatch, pixels):
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with step_on_cuda(pixels=pixels, fused=True) as run:
        visits = [Visit(torch.arange(size, device=CUDA), 0) for size in (16, 16, 7)]
        for index, *_ in (*run.ahead(iter(visits)), *visits):
            result = run(index, 16)
            assert (result.device, result.shape) == (CUDA, (3,))


@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
def test_no_part_of_a_step_on_slots_waits_for_the_device(mode, monkeypatch):
    # streams and pinned memory are there with a CUDA build of torch only, and no part of a step
    monkeypatch.setattr("rvi_fast.training.places.staging.Mover", lambda *_: None)
    monkeypatch.setattr("rvi_fast.training.places.staging.check_memory", lambda *_: None)
    with step_on_cuda(mode, storage="host") as run:
        assert run.step.step.posterior.rows.shape[0] == 12 * 5
        for size in (16, 16, 7):
            result = run(torch.arange(size, device=CUDA), 16)
            assert (result.device, result.shape) == (CUDA, (3,))


def test_a_look_at_a_value_is_noticed():
    with step_on_cuda() as run:
        step = run.step
        run.step = lambda *args: [value.nan_to_num(value.item()) for value in step(*args)]
        with pytest.raises(DataDependentOutputException):
            run(torch.arange(5, device=CUDA), 5)


def test_a_batch_is_warmed_up_and_captured_at_the_same_alignment(monkeypatch):
    """A kernel is compiled for the alignment of what it is given, and must not be within a capture."""

    stand_in_for_cuda(monkeypatch)
    seen = []

    class Run(BatchStep):
        def launch(self, index, full_size):
            seen.append((index.data_ptr() % 16, index.tolist()))
            return torch.zeros(3)

    rows = SimpleNamespace(reserve=lambda _: None, before_replay=lambda: None)
    inputs = Inputs(torch.zeros(21, D), None)
    run = Run(None, inputs, torch.device("cpu"), torch.float32)
    step, order = CapturedStep(run, rows, 3), torch.arange(21)
    for start in (7, 14):  # odd: a view of it is aligned to 8 bytes
        assert order[start : start + 7].data_ptr() % 16 in (0, 8)
        step(order[start : start + 7], 7)
    assert [index for _, index in seen] == [list(range(7, 14)), list(range(14, 21))]
    assert [alignment for alignment, _ in seen] == [0, 0]


def make(decoder=None):
    torch.manual_seed(0)
    model = rvi_fast.models.rvi(60, D, latent_dim=T, hidden=(16,), groups=(5, 9))
    if decoder is not None:
        model.decoder = nn.Sequential(model.decoder, decoder)
    return model


@pytest.mark.parametrize("decoder", [None, nn.Identity()])
@pytest.mark.parametrize("optimizer", ["dense", "lazy"])
def test_a_captured_run_is_the_same_bit_for_bit(monkeypatch, optimizer, decoder):
    x, runs = torch.rand(60, D), []
    for captured in (False, True):
        if captured:
            stand_in_for_cuda(monkeypatch, capture_functions)
        model = make(decoder)
        history = rvi_fast.fit(
            model, x, epochs=3, batch_size=16, optimizer=optimizer, eval_every=0, progress=False
        )
        runs.append((dict(history), model.state_dict()))
    # batches of 16 and of 12 rows
    assert len(Graph.made) == 2
    assert runs[0][0] == runs[1][0]
    testing.assert_bit_equal(runs[1][1], runs[0][1])


def on_the_host(kind, folder):
    """x and mask as they are given to `fit`, and the same in memory."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(60, D, generator=generator)
    observed = torch.rand(60, D, generator=generator) < 0.7
    pixels = (255 * x).to(torch.uint8)
    holed = torch.where(observed, x, torch.nan)

    def mapped(table):
        np.save(folder / f"{table.dtype}.npy", table.numpy())
        return np.load(folder / f"{table.dtype}.npy", mmap_mode="r")

    if kind == "a map":
        return mapped(holed), None, holed, None
    if kind == "a map and a mask":
        return mapped(x), observed, holed, None
    if kind == "pixels and a mapped mask":
        return mapped(pixels), mapped(observed), pixels, observed
    table = pixels if "pixels" in kind else holed
    return mapped(pixels) if kind == "pixels" else Items(60, table.__getitem__), None, table, None


HOST = ["a map", "a map and a mask", "pixels", "pixels and a mapped mask", "a Dataset"]
HOST += ["a Dataset of pixels"]


@pytest.mark.parametrize("kind", HOST)
@pytest.mark.parametrize("options", [{}, {"optimizer": "lazy"}, {"block_rows": 7}])
def test_a_captured_run_on_data_of_the_host_is_the_same_bit_for_bit(
    monkeypatch, tmp_path, kind, options
):
    x, mask, held, held_mask = on_the_host(kind, tmp_path)
    options = {"epochs": 4, "batch_size": 16, "progress": False, **options}
    expected = make()
    history = rvi_fast.fit(expected, held, mask=held_mask, **options)
    stand_in_for_cuda(monkeypatch, capture_functions)
    model = make()
    assert rvi_fast.fit(model, x, mask=mask, **options) == history
    testing.assert_bit_equal(model.state_dict(), expected.state_dict())
    # batches of 16 in two places, the last one of each epoch of 12 in one of them
    assert len(Graph.made) == 3


@pytest.mark.parametrize("capture", [False, True])
def test_what_goes_wrong_in_reading_is_raised_in_its_step(monkeypatch, capture):
    def item(row):
        return torch.full((D,), torch.inf if row == 41 and seen else 0.1 * row)

    stand_in_for_cuda(monkeypatch, capture_functions)
    seen, loaded, load = [], [], HostInputs.load
    monkeypatch.setattr(
        HostInputs, "load", lambda self, index: loaded.append(index.tolist()) or load(self, index)
    )
    look = [lambda model, history: seen.append(history.epochs)]
    options = {"epochs": 9, "batch_size": 16, "callbacks": look, "capture": capture}
    words = r"expected finite numbers .* got inf at row 41, column 0"
    with pytest.raises(ValueError, match=words):
        rvi_fast.fit(make(), Items(60, item), progress=False, standardize=False, **options)
    # in the second epoch, of four batches, and after all that come before it
    assert seen == [1]
    assert [41 in index for index in loaded[4:]] == [False] * (len(loaded) - 5) + [True]


def test_items_of_another_kind_are_refused_by_their_row(monkeypatch):
    def item(row):
        return torch.zeros(D, dtype=torch.uint8 if row < 32 else torch.float32)

    stand_in_for_cuda(monkeypatch, capture_functions)
    inputs = prepare(make(), Items(60, item))
    inputs.reserve(2)
    inputs.load(torch.tensor([31, 0]))
    with pytest.raises(TypeError, match=r"expected torch.uint8, .* got torch.float32 at row 33"):
        inputs.load(torch.tensor([33, 32]))


@pytest.mark.parametrize("shared_noise", [False, True])
def test_captured_inference_is_the_same_bit_for_bit(monkeypatch, shared_noise):
    model, x, found = make(), torch.rand(41, D), []
    for captured in (False, True):
        if captured:
            stand_in_for_cuda(monkeypatch, capture_functions)
        posterior = rvi_fast.infer(model, x, steps=20, batch_size=16, shared_noise=shared_noise)
        found.append(posterior.rows.detach())
    # of each of three batches, one that decodes the mean and one that decodes samples
    assert len(Graph.made) == 3 * 2
    assert torch.equal(*found)


class Loop:
    """A loop of a user's own, as the README has it, whose batches lie at fixed addresses."""

    def __init__(self, mode, likelihood):
        self.model = rvi_fast.models.rvi(
            60, D, latent_dim=T, hidden=(16,), groups=(5, 9), likelihood=likelihood,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        self.model.posterior.sparse = True
        self.rows = rvi_fast.optim.RowAdam(self.model.posterior, lr=0.02, mode=mode)
        others = [p for name, p in self.model.named_parameters() if name != "posterior.rows"]
        self.shared = shared_adam([{"params": others, "lr": 0.01}])
        self.index = torch.zeros(16, dtype=torch.int64)
        self.seed, self.x = torch.zeros(1, dtype=torch.int64), torch.zeros(16, D)

    def load(self, number):
        generator = torch.Generator().manual_seed(number)
        self.index.copy_(torch.randint(60, (16,), generator=generator))
        self.x.copy_(torch.rand(16, D, generator=generator).round())
        self.seed.fill_(number)

    def step(self):
        model = self.model
        z, kl = model.posterior(self.index, seed=self.seed)
        loss = (kl - model.likelihood(self.x, model.decoder(z))).mean()
        self.rows.zero_grad()
        self.shared.zero_grad()
        loss.backward()
        self.rows.step()
        self.shared.step()
        return loss.detach()

    def run(self, steps, captured):
        """Losses; the first step warms up what is set up once."""
        graph, held, losses = Graph(), None, []
        for number in range(steps):
            self.load(number)
            self.rows.param_groups[0]["lr"] = 0.02 / (1 + number)
            if number == 0 or not captured:
                losses.append(self.step())
                continue
            if held is None:
                with capture_functions(graph):
                    held = self.step()
            self.rows.before_replay()
            graph.replay()
            losses.append(held.clone())
        return torch.stack(losses)


@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_a_loop_of_ones_own_that_is_captured_is_the_same_bit_for_bit(monkeypatch, mode, likelihood):
    stand_in_for_cuda(monkeypatch)
    loops = [Loop(mode, likelihood) for _ in range(2)]
    found = [loop.run(9, captured) for loop, captured in zip(loops, (False, True), strict=True)]
    assert torch.equal(*found)
    assert [loop.rows.num_steps for loop in loops] == [9, 9]
    states = [loop.model.state_dict() for loop in loops]
    testing.assert_bit_equal(*states)
    moments = [{n: t for n, t in loop.rows.raw_tables().items() if n != "rows"} for loop in loops]
    testing.assert_bit_equal(*moments)


def test_replays_that_outgrow_the_history_bring_all_rows_up_to_date(monkeypatch):
    stand_in_for_cuda(monkeypatch)
    whole = Loop("dense", "gaussian")
    expected = whole.run(12, False)
    monkeypatch.setattr(row_adam, "_HISTORY", 5)
    short = Loop("dense", "gaussian")
    torch.testing.assert_close(short.run(12, True), expected)
    assert len(short.rows._history) == 5
    assert short.rows._flushed_at > 0
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(short.model.state_dict()[name], value, msg=name)


def test_inference_with_a_decoder_of_ones_own_is_not_captured(monkeypatch):
    stand_in_for_cuda(monkeypatch, capture_functions)
    rvi_fast.infer(make(nn.Identity()), torch.rand(20, D), steps=8)
    assert not Graph.made
