"""What the processes of tests/test_distributed.py run, and how they are started.

They are forked from one server that has imported everything, so that a process starts at once.
"""

import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import rvi_fast
from rvi_fast.training import distributed

# rows, features; and batches of which most processes own nothing
N, D, BATCH = 37, 6, 3
TIMEOUT = 20.0


def table(num_data=N, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(num_data, D, generator=generator, dtype=dtype)
    return torch.where(torch.rand(num_data, D, generator=generator) < 0.3, torch.nan, x)


def make(shard=None, *, kind="rvi", dtype=torch.float32, num_data=N, storage="device"):
    """The same model whatever the shard, and wherever its rows lie."""
    torch.manual_seed(3)
    groups = (3, 5) if kind != "vad" else ()
    posterior = rvi_fast.RelayPosterior(
        num_data, 4, groups=groups, dtype=dtype, shard=shard, storage=storage
    )
    layers = [torch.nn.Linear(4, 7), torch.nn.ReLU(), torch.nn.Linear(7, D)]
    if kind == "autograd":
        layers[1] = torch.nn.Tanh()
    decoder = torch.nn.Sequential(*layers).to(dtype)
    if kind == "autograd":  # a hook, which only a call of the module sees
        posterior.register_forward_hook(lambda *_: None)
    return rvi_fast.models.LatentModel(posterior, decoder, rvi_fast.GaussianLikelihood(D).to(dtype))


def kinds_table():
    """Yes/no, large counts and codes that the halves of the table have in other shares."""
    generator = torch.Generator().manual_seed(7)
    late = torch.arange(N) / N
    x = torch.stack(
        (
            (torch.rand(N, generator=generator) < late).float(),
            torch.poisson(2000 * (1 + late), generator=generator),
            (3 * late * torch.rand(N, generator=generator)).floor(),
        ),
        dim=1,
    )
    return torch.where(torch.rand(x.shape, generator=generator) < 0.2, torch.nan, x)


def of_kinds(shard=None, **_):
    torch.manual_seed(3)
    law = ["bernoulli", "poisson", ("categorical", 3)]
    sizes = {"latent_dim": 4, "hidden": (7,), "groups": (3, 5)}
    return rvi_fast.models.rvi(N, 3, likelihood=law, shard=shard, **sizes)


def built(shard=None, storage="device"):
    torch.manual_seed(3)
    sizes = {"latent_dim": 4, "hidden": (7,), "groups": (3, 5)}
    return rvi_fast.models.rvi(N, D, shard=shard, storage=storage, **sizes)


def options(**changes):
    base = {"epochs": 2, "batch_size": BATCH, "lr": 3e-3, "posterior_lr": 2e-2, "progress": False}
    return {**base, **changes}


def train(
    rank,
    size,
    *,
    kind="rvi",
    dtype=torch.float32,
    num_data=N,
    make_model=make,
    x=None,
    storage="device",
    **changes,
):
    """State of the model and history."""
    x = table(num_data, dtype) if x is None else x
    shard = distributed.rows_of_rank(num_data)
    keywords = {} if make_model is built else {"kind": kind, "dtype": dtype, "num_data": num_data}
    model = make_model(shard, **keywords, **({} if storage == "device" else {"storage": storage}))
    history = rvi_fast.fit(model, x, **options(**changes))
    return {**model.state_dict(), "history": dict(history)}


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def _enter(rank, size, port, folder, timeout, device, function, keywords):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    try:
        distributed.init(timeout=timeout, device=device)
        result = function(rank, size, **keywords)
        torch.save(result, folder / f"{rank}.pt")
        dist.barrier()
    except BaseException as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        os._exit(1)


_context = multiprocessing.get_context("forkserver")
# the first optimiser imports dynamo, four fifths of what a process takes
_preload = ["torch", "torch._dynamo", "torch.distributed.checkpoint", "distributed_worker"]
_context.set_forkserver_preload(_preload)


def start(size, function, folder, *, timeout=TIMEOUT, device="cpu", **keywords):
    """Processes that run `function(rank, size, **keywords)`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [
        _context.Process(
            target=_enter, args=(rank, size, port, folder, timeout, device, function, keywords)
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def run(size, function, folder, **keywords):
    """What `function(rank, size, **keywords)` returns in each of `size` processes."""
    processes = start(size, function, folder, **keywords)
    for process in processes:
        process.join(120)
    said = "; ".join(path.read_text() for path in sorted(Path(folder).glob("*.txt")))
    assert [process.exitcode for process in processes] == [0] * size, said
    # written by the processes above
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


# a float32 parameter after two dozen steps that were rounded elsewhere
TOLERANCE = 2e-6


def alone(epochs=2, *, make=make, **changes):
    """What a single process makes of the same."""
    kinds = {name: changes.pop(name) for name in ("kind", "dtype", "storage") if name in changes}
    model = make(**kinds)
    x = table(dtype=kinds.get("dtype", torch.float32))
    history = rvi_fast.fit(model, x, **options(epochs=epochs, **changes))
    return {**model.state_dict(), "history": dict(history)}


def together(parts):
    """The state of all rows from those of the processes, which agree on all else."""
    whole = dict(parts[0])
    for name, value in whole.items():
        if name == "history":
            assert all(part[name] == value for part in parts)
        elif name == "posterior.rows":
            whole[name] = torch.cat([part[name] for part in parts])
        else:
            assert all(torch.equal(part[name], value) for part in parts), name
    return whole


def assert_close(got, expected, tolerance=TOLERANCE):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if name != "history":
            torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance, msg=name)
            continue
        for quantity, numbers in value.items():
            assert got[name][quantity] == pytest.approx(numbers, rel=1e-5, nan_ok=True), quantity


def assert_equal(got, expected):
    assert got["history"] == expected["history"]
    for name in expected.keys() - {"history"}:
        assert torch.equal(got[name], expected[name]), name


def trained(size, folder, run_dir, **changes):
    changes = {"run_dir": str(run_dir), "resume": True, "checkpoint_every": 0.0, **changes}
    return together(run(size, train, folder, make_model=built, **changes))
