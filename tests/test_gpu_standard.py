"""The standard model on a GPU: numbers in three precisions, races, captures of odd batches, memory."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import rvi_fast
from rvi_fast import ops, reference, testing
from rvi_fast.layout import RowLayout
from rvi_fast.training.loop.capture import CapturedStep

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
T, D = 64, 784
LAYOUT = RowLayout.resolve(T, (25, 50, 100))
# relative error that products of each precision may leave
BOUNDS = {"highest": 2e-6, "high": 3e-5, "medium": 3e-3}


@pytest.fixture(autouse=True)
def precision_as_before():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def constants(form="linear"):
    return list(LAYOUT.groups), list(LAYOUT.kept), form


def tables(num_data):
    """Rows and relays on the CPU."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(num_data, LAYOUT.width)
    for part in (*LAYOUT.group_slices, LAYOUT.deviation_slice):
        rows[:, part] = torch.randn(num_data, part.stop - part.start, generator=generator)
    rows[:, LAYOUT.log_std_slice] = torch.randn(num_data, T, generator=generator) * 0.3 - 1
    return rows, torch.randn(LAYOUT.num_relays, T, generator=generator)


def error(got, wanted):
    got, wanted = got.double().cpu(), wanted.double().cpu()
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("precision", BOUNDS)
def test_relay_sample_is_right_at_the_standard_size(precision):
    torch.set_float32_matmul_precision(precision)
    rows, relays = tables(5000)
    generator = torch.Generator().manual_seed(2)
    index = torch.randperm(5000, generator=generator)[:1999]
    seed, grads = torch.tensor([7]), (torch.randn(1, 1999, T), torch.randn(1999))
    exact = (rows.double(), relays.double(), index, seed, None)
    z, kl, bits, mean = reference.relay_sample_fwd(*exact, *constants(), 1)
    wanted = reference.relay_sample_bwd(
        *(grad.double() for grad in grads), *exact, bits, mean, *constants(), True, True
    )
    kernels = ops.implementation("cuda")
    here = [*(tensor.to(CUDA) for tensor in (rows, relays, index, seed)), None]
    got = kernels.relay_sample_fwd(*here, *constants(), 1)
    back = kernels.relay_sample_bwd(
        *(grad.to(CUDA) for grad in grads), *here, got[2], got[3], *constants(), True, True
    )
    assert torch.equal(got[2].cpu(), bits)
    for name, ours, theirs in (
        ("z", got[0], z),
        ("kl", got[1], kl),
        ("mean", got[3], mean),
        ("grad_rows", back[0], wanted[0]),
        ("grad_relays", back[1], wanted[1]),
    ):
        assert error(ours, theirs) < BOUNDS[precision], name


@pytest.mark.parametrize("precision", BOUNDS)
def test_the_last_layer_is_right_at_the_standard_size(precision):
    torch.set_float32_matmul_precision(precision)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 999, T, generator=generator)
    weight, bias = (torch.randn(D, T, generator=generator) / 8, torch.randn(D, generator=generator))
    x = torch.randn(999, D, generator=generator)
    x[torch.rand(x.shape, generator=generator) < 0.5] = torch.nan
    inputs = (torch.randn(1, 999), hidden, weight, bias, x, torch.tensor(0.3))
    wanted = reference.linear_log_likelihood_bwd(
        *(tensor.double() for tensor in inputs), None, "gaussian", True, True, True
    )
    got = ops.implementation("cuda").linear_log_likelihood_bwd(
        *(tensor.to(CUDA) for tensor in inputs), None, "gaussian", True, True, True
    )
    for ours, theirs in zip(got, wanted, strict=True):
        assert error(ours, theirs) < 10 * BOUNDS[precision]


def poison():
    """What the allocator gives out next holds NaN."""
    torch.full((65_536, 400), float("nan"), device=CUDA)


@pytest.mark.parametrize("form", ["linear", "mixture"])
def test_every_run_gives_the_same_bits_whatever_memory_held_before(form):
    batch = 65_536
    rows, relays = (table.to(CUDA) for table in tables(batch))
    index, seed = torch.randperm(batch, device=CUDA), torch.tensor([7], device=CUDA)
    grads = torch.randn(1, batch, T, device=CUDA), torch.randn(batch, device=CUDA)
    kernels, first = ops.implementation("cuda"), None
    here = (rows, relays, index, seed, None)
    for run in range(60):
        poison()
        there = kernels.relay_sample_fwd(*here, *constants(form), 1)
        back = kernels.relay_sample_bwd(
            *grads, *here, there[2], there[3], *constants(form), True, True
        )
        found = (*there, *back)
        if first is None:
            first = [tensor.clone() for tensor in found]
            assert all(t.isfinite().all() for t in first if t.is_floating_point())
        for ours, theirs in zip(found, first, strict=True):
            assert torch.equal(ours, theirs), run


def fitted(num_data, batch_size, pixels, capture, device=CUDA):
    """History and parameters of a short run of the standard model."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (num_data, D), dtype=torch.uint8)
    mask = torch.rand(num_data, D) < 0.5
    model = rvi_fast.models.rvi(num_data, D)
    history = rvi_fast.fit(
        model,
        x if pixels else x / 255,
        mask=mask,
        epochs=4,
        batch_size=batch_size,
        device=device,
        progress=False,
        capture=capture,
        eval_every=0,
    )
    return dict(history), {name: value.cpu() for name, value in model.state_dict().items()}


# an odd batch with an odd tail: row numbers that start at addresses of every alignment
@pytest.mark.parametrize(
    ("num_data", "batch_size", "pixels"),
    [(1024, 256, True), (1040, 256, False), (796, 257, True), (512, 101, False)],
)
def test_steps_of_every_batch_size_are_captured(monkeypatch, num_data, batch_size, pixels):
    graphs, capture = [], CapturedStep._capture

    def watched(self, *arguments):
        graphs.append(capture(self, *arguments))
        return graphs[-1]

    monkeypatch.setattr(CapturedStep, "_capture", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # fit warns where it does not capture
        warnings.simplefilter("ignore", ops.FallbackWarning)
        captured = fitted(num_data, batch_size, pixels, True)
        plain = fitted(num_data, batch_size, pixels, False)
    assert graphs
    assert all(graph is not None for graph in graphs)
    assert captured[0] == plain[0]
    testing.assert_bit_equal(captured[1], plain[1])


def test_memory_does_not_grow_from_fit_to_fit():
    reserved = []
    for _ in range(3):
        fitted(2048, 256, True, True)
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] <= reserved[1]


def test_one_process_of_nccl_trains():
    code = """
import torch, rvi_fast
from rvi_fast.training import distributed
device = distributed.init()
x = torch.rand(512, 784)
model = rvi_fast.models.rvi(512, 784, shard=distributed.rows_of_rank(512))
history = rvi_fast.fit(model, x, epochs=2, device=device, progress=False)
distributed.leave()
assert all(loss == loss for loss in history["loss"]), history
"""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    environment = os.environ | alone | address
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
