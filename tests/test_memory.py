"""What is said beforehand is what a run takes."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity

import rvi_fast
from rvi_fast import estimate_memory, fit, likelihoods, models
from rvi_fast.memory import room
from rvi_fast.training.inputs.prepare import prepare
from rvi_fast.training.places.staging import Staging
from rvi_fast.training.runs import journal

MEASURE = """
import sys, numpy as np, torch, rvi_fast, torch._dynamo
torch.set_num_threads(1)
num_data, num_features, place, folder, block, moments = sys.argv[1:]
num_data, num_features = int(num_data), int(num_features)
def fit(model, x, **options):
    rvi_fast.fit(model, x, epochs=1, progress=False, eval_every=1, **options)
def peak(name="VmHWM"):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
fit(rvi_fast.models.rvi(100, 20), torch.zeros(100, 20))  # libraries and their buffers
before = peak("VmRSS")
storage = folder if place == "file" else place
x = np.zeros((num_data, num_features), "uint8")
if place == "file":
    np.save(folder + "/x.npy", x)
    x = np.load(folder + "/x.npy", mmap_mode="r")
options = {} if block == "None" else {"block_rows": int(block)}
options["moment_dtype"] = getattr(torch, moments)
fit(rvi_fast.models.rvi(num_data, num_features, storage=storage), x, **options)
print(peak() - before)
"""


def measured(*arguments):
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


@needs_proc
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_the_estimate_is_within_a_twentieth_of_what_a_run_takes(tmp_path, moments):
    expected = estimate_memory(
        120_000, 20, data_dtype=torch.uint8, moment_dtype=getattr(torch, moments)
    )
    assert measured(120_000, 20, "device", tmp_path, None, moments) == pytest.approx(
        expected.device, rel=0.05
    )


@needs_proc
def test_tables_in_files_take_the_memory_of_a_few_blocks(tmp_path):
    block = 2_000
    expected = estimate_memory(
        120_000,
        20,
        storage=tmp_path,
        block_rows=block,
        data_dtype=torch.uint8,
        data_in_memory=False,
    )
    used = measured(120_000, 20, "file", tmp_path, block, "float32")
    assert used < 1.5 * expected.device < 0.5 * expected.tables + expected.resident
    on_disk = sum(
        (tmp_path / f"{name}.bin").stat().st_size
        for name in ("rows", "exp_avg", "exp_avg_sq", "row_step")
    )
    assert on_disk == expected.disk == expected.tables + expected.moments


def test_tables_and_moments_are_counted_to_the_byte():
    estimate = estimate_memory(1000, 7, latent_dim=5, groups=(3, 6), hidden=(4,))
    model = models.rvi(1000, 7, latent_dim=5, groups=(3, 6), hidden=(4,))
    optimizer = rvi_fast.optim.RowAdam(model.posterior)
    tables = optimizer.raw_tables()
    assert estimate.tables == tables.pop("rows").nbytes
    assert estimate.moments == sum(table.nbytes for table in tables.values())
    others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    assert estimate.shared == 16 * sum(p.numel() for p in others)
    assert estimate.total == estimate.device
    in_files = estimate_memory(1000, 7, latent_dim=5, groups=(3, 6), storage="x", run_dir=True)
    assert in_files.disk == 2 * (estimate.tables + estimate.moments)
    assert "tables 0.00 GB" in str(in_files)
    with pytest.raises(ValueError, match="num_data"):
        estimate_memory(0, 7)


def test_a_gpu_holds_the_blocks_at_work_and_the_host_the_tables():
    options = {"latent_dim": 5, "groups": (3, 6), "block_rows": 10, "device": "cuda"}
    on_device, host, file = (
        estimate_memory(1000, 7, storage=place, **options) for place in ("device", "host", "x")
    )
    model = models.rvi(1000, 7, latent_dim=5, groups=(3, 6), storage="host")
    optimizer = rvi_fast.optim.RowAdam(model.posterior)
    staging = Staging(model, optimizer, 10, 256)
    slots = sum(t.nbytes for t in (*staging.slots.values(), staging.numbers))
    others = on_device.device - on_device.tables - on_device.moments
    assert host.device == file.device == others + slots
    block = sum(table[:10].nbytes for table in optimizer.raw_tables().values())
    assert host.host == host.tables + host.moments + block
    assert (host.disk, on_device.host) == (0, 0)
    assert file.disk == file.tables + file.moments
    assert file.host == file.resident + block < host.host
    assert "host 0.00 GB" in str(host)
    optimizer.detach()


def test_a_copy_of_the_data_that_cannot_fit_is_refused(monkeypatch):
    from rvi_fast.training.inputs import prepare as inputs

    def refuse(device, table, size, advice):
        raise room.InsufficientMemory(f"{table} {size} {advice}")

    monkeypatch.setattr(inputs, "check_memory", refuse)
    model = models.rvi(10, 3, latent_dim=2)
    prepare(model, np.zeros((10, 3), np.float32))
    with pytest.raises(ValueError, match=r"x 120 pass x as torch\.float32, or as a memory map"):
        prepare(model, np.zeros((10, 3)))


def test_a_journal_that_cannot_fit_is_refused_before_the_first_step(tmp_path, monkeypatch):
    model = models.rvi(10, 3, latent_dim=2, groups=(3,), storage=tmp_path / "tables")
    monkeypatch.setattr(journal, "free_disk", lambda _: 100)
    before = model.posterior.rows.clone()
    with pytest.raises(
        MemoryError, match=r"run_dir: the journal of the tables in .* or train without"
    ):
        fit(model, torch.zeros(10, 3), run_dir=tmp_path / "run", progress=False)
    assert torch.equal(model.posterior.rows, before)
    fit(model, torch.zeros(10, 3), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "free"),
    [("1000", "400", 100, 700), ("max", "400", 0, None), ("300", "400", 0, 0)],
)
def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch, limit, used, inactive, free):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(limit + "\n")
    (group / "memory.current").write_text(used + "\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    listing = tmp_path / "cgroup"
    listing.write_text("0::/a/b\n")
    assert room.cgroup_room(listing, tmp_path) == free


class NotTheOp(likelihoods.Bernoulli):
    """A law that inherits from one that is an op."""


@pytest.mark.parametrize(
    ("likelihood", "most"),
    [
        ("student_t", 5.0),
        ("bernoulli", 1.0),
        (NotTheOp(120), 1.0),
        ("poisson", 50.0),
        ("negative_binomial", 50.0),
        (("categorical", 2), 1.0),
        (("categorical", 9), 8.0),
        (["gaussian", "bernoulli", ("categorical", 3), "poisson"] * 30, 1.0),
        (["negative_binomial"] * 120, 1.0),
        ([("categorical", 3), ("categorical", 5)] * 60, 2.0),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_step_makes_of_a_law_by_autograd_is_what_is_estimated(likelihood, most):
    law, generator = likelihoods.make(likelihood, 120), torch.Generator().manual_seed(0)
    x = torch.randint(0, int(most) + 1, (64, 120), generator=generator).float()
    x[torch.rand(x.shape, generator=generator) < 0.3] = torch.nan
    outputs = torch.randn(64, law.num_outputs, generator=generator).requires_grad_()

    def step():
        outputs.grad = None
        (-law(x, outputs).mean()).backward()

    step()
    # tensors of before, and of other tests, are not to be freed meanwhile
    outputs.grad = None
    gc.collect()
    gc.disable()
    try:
        with torch.profiler.profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        ) as found:
            step()
    finally:
        gc.enable()
    events = sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max()
    tensors = held / (outputs.numel() * outputs.element_size())
    assert 0.45 * law.step_tensors < tensors <= law.step_tensors
    if not law.fused:
        one, two = (
            rvi_fast.estimate_memory(9, 120, likelihood=likelihood, batch_size=b)
            for b in (1000, 2000)
        )
        assert two.step - one.step >= 1000 * law.num_outputs * 4 * tensors
