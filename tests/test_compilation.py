"""Kernels of a step are compiled side by side before it runs, and a user is told so, once."""

import itertools
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import kernel_budget
import torch
import triton
import triton.language as tl
from test_launches import META, B, data, serve_without_memory, standard
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import rvi_fast
from rvi_fast import kernels, testing
from rvi_fast._devices import rehearsal, rehearsing
from rvi_fast.ops import table
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop import compilation
from rvi_fast.training.loop.capture import BatchStep
from rvi_fast.training.loop.fused_step import FusedStep
from rvi_fast.training.loop.inference_step import inference_step
from rvi_fast.training.loop.step import decoder_step, make_step

# numbers of devices that nothing was compiled for in this process
DEVICES = itertools.count(10_000)


class Driver(kernel_budget._Driver):
    """Of a device of its own."""

    def __init__(self):
        super().__init__(90)
        self.number = next(DEVICES)

    def get_current_device(self):
        return self.number


@pytest.fixture
def device(request, monkeypatch):
    """A GPU whose kernels are compiled and cannot run; other tests may have left some in files."""
    serve_without_memory(monkeypatch)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))
    monkeypatch.setattr(compilation, "implementation", lambda _: kernels)
    before = driver._active
    driver.set_active(Driver())
    yield
    driver.set_active(before)


def launched(step, index, kind=B):
    """Names of what the step launches, and whether that was compiled for the device before."""
    found, run = [], JITFunction.run

    def look(self, *args, grid, warmup, **kwargs):
        assert not warmup
        held = {**self.device_caches[driver.active.get_current_device()][0]}
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.fn.__name__, kernel in held.values()))
        return kernel

    JITFunction.run = look
    try:
        step.launch(index, kind)
    finally:
        JITFunction.run = run
    return found


@pytest.mark.parametrize("kind", ["six launches", "any model"])
def test_a_step_finds_all_that_it_launches_compiled(device, kind):
    made, inputs = standard(), data("pixels")
    step = make_step(*made)
    bound = (
        FusedStep(step, inputs, B, kernels)
        if kind == "six launches"
        else BatchStep(step, inputs, META, torch.float32)
    )
    index = torch.empty(B, device=META, dtype=torch.int64)
    compilation.compile_kernels(bound, B, [B], progress=False)
    # the host counts none of it
    assert made[1].num_steps == 0
    assert not rehearsing()
    found = launched(bound, index)
    assert all(compiled for _, compiled in found), found
    assert len({name for name, _ in found}) >= 6
    assert made[1].num_steps == 1


def test_kernels_are_compiled_by_threads_side_by_side(device, monkeypatch):
    made, inputs = standard(), data("numbers")
    bound = FusedStep(make_step(*made), inputs, B, kernels)
    at_work, together = [], threading.Barrier(6, timeout=60)
    submit = ThreadPoolExecutor.submit

    def watched(self, function):
        def work():
            at_work.append(threading.current_thread())
            together.wait()  # none ends before all six have begun
            return function()

        return submit(self, work)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", watched)
    # as many as a machine with few processors has threads for
    init = ThreadPoolExecutor.__init__
    monkeypatch.setattr(ThreadPoolExecutor, "__init__", lambda self: init(self, 8))
    compilation.compile_kernels(bound, B, [B], progress=False)
    assert len({*at_work}) == 6


def test_what_could_change_anything_is_not_rehearsed(device):
    made = standard()
    hooked = standard()
    hooked[0].decoder.register_forward_hook(lambda *_: pytest.fail("was called"))
    others = [p for name, p in made[0].named_parameters() if name != "posterior.rows"]
    steps = [
        make_step(*hooked),
        make_step(*made[:2], torch.optim.Adam(others)),
    ]
    for step in steps:
        bound = BatchStep(step, data("numbers"), META, torch.float32)
        assert not bound.changes_by_kernels_alone
        compilation.compile_kernels(bound, B, [B], progress=True)
    slots = FusedStep(make_step(*made), data("numbers"), B, kernels, lambda rows: rows)
    assert not slots.changes_by_kernels_alone


def test_an_inference_finds_all_that_it_launches_compiled(device):
    model = standard()[0]
    posterior = rvi_fast.RelayPosterior(B, 64, groups=(25, 50, 100)).to(META)
    rows = rvi_fast.optim.RowAdam(posterior, mode="row")
    keys, x = torch.empty(B, device=META, dtype=torch.int64), torch.empty((B, 784), device=META)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        decoder = decoder_step(model, learn=False)
        step = inference_step(posterior, rows, decoder, (x, None), keys)
        assert rows.num_steps == 0
        for kind in (0, 1):
            assert all(compiled for _, compiled in launched(step, keys, kind))
    assert rows.num_steps == 2


def test_what_no_kernel_serves_does_not_run_in_a_rehearsal(monkeypatch):
    monkeypatch.setattr(table, "_kernel", lambda *_: lambda *_: NotImplemented)
    serving = SimpleNamespace(compiling=nullrehearsal)
    monkeypatch.setattr(compilation, "implementation", lambda _: serving)
    model = rvi_fast.models.rvi(20, 4, latent_dim=3, groups=(4,), hidden=(5,))
    rows = rvi_fast.optim.RowAdam(model.posterior)
    others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    step = make_step(model, rows, shared_adam([{"params": others, "lr": 0.1}]))
    bound = BatchStep(step, Inputs(torch.rand(20, 4), None), torch.device("cpu"), torch.float32)
    assert bound.changes_by_kernels_alone
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compilation.compile_kernels(bound, 7, [7], progress=True)
    testing.assert_bit_equal(model.state_dict(), before)
    assert rows.num_steps == 0
    bound(torch.arange(7), 7)
    assert rows.num_steps == 1


@contextmanager
def nullrehearsal():
    with rehearsal():
        yield []


@pytest.fixture
def compiled_under_a_bar(monkeypatch):
    """Makes kernels of which the first `read` are there at once, and the others once a bar is shown.

    No clock says when: on a busy machine any time may have passed before somebody waits.
    """
    shown, threads = threading.Event(), []

    bar = compilation.progress_bar

    def shown_bar(*args, **kwargs):
        made = bar(*args, **kwargs)
        shown.set()
        return made

    def make(read, others):
        found = [Future() for _ in range(read + others)]
        for each in found[:read]:
            each.set_result(None)

        def compile_others():
            shown.wait()
            for each in found[read:]:
                each.set_result(None)

        threads.append(threading.Thread(target=compile_others))
        threads[-1].start()
        return found

    monkeypatch.setattr(compilation, "progress_bar", shown_bar)
    monkeypatch.setattr(compilation, "_READ", 0.01)
    yield make
    shown.set()
    for thread in threads:
        thread.join()


def test_a_user_is_told_what_is_compiled_and_nothing_where_nothing_is(compiled_under_a_bar, capsys):
    compilation.show(compiled_under_a_bar(2, 0), "a GPU")
    compilation.show([], "a GPU")
    assert capsys.readouterr() == ("", "")
    compilation.show(compiled_under_a_bar(1, 3), "a GPU")
    said = capsys.readouterr().err
    assert "compiling 3 kernels for a GPU, once" in said
    assert "3/3" in said


@pytest.mark.parametrize("progress", [False, True])
def test_fit_compiles_before_its_first_step_and_keeps_quiet_where_it_is_to(
    monkeypatch, capsys, compiled_under_a_bar, progress
):
    order, launch = [], BatchStep.launch

    @contextmanager
    def compiling():
        with rehearsal():
            yield compiled_under_a_bar(0, 1)

    def watched(self, *given):
        order.append("rehearses" if rehearsing() else "runs")
        return None if rehearsing() else launch(self, *given)

    kernels_of_one = SimpleNamespace(compiling=compiling)
    monkeypatch.setattr(compilation, "implementation", lambda _: kernels_of_one)
    monkeypatch.setattr(BatchStep, "launch", watched)
    model = rvi_fast.models.rvi(20, 4, latent_dim=3, groups=(4,), hidden=(5,))
    rvi_fast.fit(model, torch.rand(20, 4), epochs=1, batch_size=10, progress=progress)
    assert order == ["rehearses", "runs", "runs"]
    assert ("compiling 1 kernel for cpu, once" in capsys.readouterr().err) is progress


def test_threads_make_syntax_trees_one_after_the_other(monkeypatch):
    at_work, most, turn = [], [], threading.Lock()

    def parse(function):
        with turn:
            at_work.append(function)
            most.append(len(at_work))
        threading.Event().wait(0.01)  # long enough for another thread to come in
        at_work.remove(function)

    monkeypatch.setattr(JITFunction, "parse", parse)
    with kernels.compiling() as compiled, ThreadPoolExecutor(8) as pool:
        wanted = range(16)
        list(pool.map(lambda number: JITFunction.parse(number), wanted))
        assert not compiled
    assert most == [1] * len(wanted)
    assert JITFunction.parse is parse


@triton.jit
def _kernel_that_names_nothing(x_ptr):
    tl.store(x_ptr, what_is_not_there)  # noqa: F821


@triton.jit
def _kernel_that_stores_one(x_ptr):
    tl.store(x_ptr, 1)


def test_a_kernel_that_does_not_compile_is_an_error_once_and_hinders_no_other(device):
    x = torch.empty(4, dtype=torch.int32, device=META)
    with pytest.raises(triton.CompilationError, match="what_is_not_there"), kernels.compiling():
        _kernel_that_names_nothing.warmup(x, grid=(1,))
    with kernels.compiling() as compiled:
        _kernel_that_stores_one.warmup(x, grid=(1,))
    assert len(compiled) == 1
    assert compiled[0].exception() is None
