"""What runs on a device that this package has no kernels for; `test_fake_device.py` starts it.

The device computes with the CPU's own functions, so that what the reference returns there has the
bits of the reference on the CPU.
"""

import json
import sys
import tempfile
import types
import warnings
from pathlib import Path

import torch
from common import run_cases

import rvi_fast
from rvi_fast import _devices, fit, impute, infer, models, ops, reference, testing
from rvi_fast.experiments.experiment import Experiment, work
from rvi_fast.experiments.sweep import directory_of, sweep
from rvi_fast.training import fit_many

N, D = 37, 5
# where float64 is missing these lie on the CPU
STATE = ("clock", "history", "lr", "step")
CONTRACTS = (
    testing.RelaySampleContract,
    testing.LogLikelihoodContract,
    testing.LinearLogLikelihoodContract,
    testing.RowAdamContract,
    testing.AdamStepContract,
)


def register(library):
    """Names the device "fake", as a vendor's package would."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("fake")
    module = types.ModuleType("torch.fake")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module._lazy_init = lambda: None
    torch._register_device_module("fake", module)


def served(function):
    """The op on the device, for tensors of the CPU, which take what it writes."""
    op, names = getattr(ops.ops, function), testing._arguments(function)
    device = torch.device("fake", 0)

    def there(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(_devices.beside(device) if name in STATE else device)

    def call(*arguments):
        given = [there(name, value) for name, value in zip(names, arguments, strict=True)]
        returned = op(*given)
        for value in [returned] if isinstance(returned, torch.Tensor) else returned or ():
            assert value.device == device
        for own, value in zip(arguments, given, strict=True):
            if isinstance(own, torch.Tensor):
                own.copy_(value)
        return returned

    return types.SimpleNamespace(**{function: call})


def every_op_is_the_reference():
    called = set()
    for contract in (make() for make in CONTRACTS):
        for function in contract.functions:
            for case in contract.cases[:4]:
                inputs = contract.inputs(function, case, torch.float32)
                wanted = contract.call(testing.Implementation("", reference), function, inputs)
                mine = testing.Implementation("", served(function))
                got = contract.call(mine, function, inputs)
                for name in wanted:
                    torch.testing.assert_close(
                        got[name], wanted[name], rtol=0, atol=0, equal_nan=True
                    )
            called.add(function)
    assert called == set(ops.SCHEMAS)
    assert ops.implementation("fake") is reference
    assert ops.unused("fake") == {}


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=generator) * 3.0 + 2.0
    return x.masked_fill(torch.rand(N, D, generator=generator) < 0.3, torch.nan)


def made(builder=models.rvi, device="cpu", **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        groups = {"groups": (3, 4)} if builder is models.rvi else {}
        model = builder(N, D, latent_dim=3, hidden=(6,), **groups, **options)
    return model.to(device)


def assert_same(model, other):
    for name, value in other.state_dict().items():
        got = model.state_dict()[name]
        torch.testing.assert_close(got.cpu(), value.cpu(), rtol=1e-5, atol=1e-6, msg=name)


def a_run_is_that_of_the_cpu(builder, options):
    options = {"epochs": 3, "batch_size": 8, "lr": 0.01, "eval_every": 2, **options}
    options["progress"] = False
    model, expected = made(builder, "fake"), made(builder)
    history, wanted = fit(model, data(), **options), fit(expected, data(), **options)
    assert {value.device.type for value in model.parameters()} == {"fake"}
    torch.testing.assert_close(torch.tensor(history["loss"]), torch.tensor(wanted["loss"]))
    assert_same(model, expected)
    x = data()[:9]
    filled = [impute(m, x, posterior=infer(m, x, steps=8)) for m in (model, expected)]
    torch.testing.assert_close(filled[0].cpu(), filled[1], rtol=1e-4, atol=1e-5)
    assert impute(model, data(), num_draws=3).isfinite().all()
    if not model.amortized:
        assert model.reconstruct(torch.arange(4, device="fake")).isfinite().all()
        assert infer(model, x, steps=2, scale_factor="held-out").mean().isfinite().all()


def rows_in_host_memory(place):
    with tempfile.TemporaryDirectory() as folder:
        storage = place if place == "host" else Path(folder) / "tables"
        expected, model = made(), made(storage=storage).to("fake")
        assert model.posterior.staged
        for each in (model, expected):
            fit(each, data(), epochs=2, batch_size=8, lr=0.01, block_rows=10, progress=False)
        assert_same(model, expected)


def a_run_goes_on_from_a_checkpoint():
    options = {"batch_size": 8, "lr": 0.01, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        fit(made(device="fake"), data(), epochs=2, run_dir=folder, **options)
        resumed, whole = made(device="fake"), made(device="fake")
        fit(resumed, data(), epochs=4, run_dir=folder, resume=True, **options)
        fit(whole, data(), epochs=4, **options)
        assert_same(resumed, whole)
        for name, value in whole.state_dict().items():
            assert torch.equal(value.cpu(), resumed.state_dict()[name].cpu()), name
        loaded = rvi_fast.load(folder, device="fake")
        assert loaded.posterior.rows.device.type == "fake"
        assert_same(loaded, whole)


def a_loop_of_ones_own():
    model = made(device="fake")
    rows = rvi_fast.optim.RowAdam(model.posterior, lr=0.01)
    others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    shared = torch.optim.Adam(others)
    x, index = data().to("fake"), torch.arange(8, device="fake")
    for step in range(3):
        z, kl = model.posterior(index, seed=step)
        loss = (kl - model.likelihood(x[index], model.decoder(z))).mean()
        rows.zero_grad()
        shared.zero_grad()
        loss.backward()
        rows.step()
        shared.step()
    state = rows.state_dict()
    rows.load_state_dict(state)
    assert model.posterior.mean().isfinite().all()


def derivatives():
    posterior = made(device="fake").posterior
    index = torch.arange(4, device="fake")
    z, kl = posterior(index)
    total = z.square().sum() + kl.sum()
    (grad,) = torch.autograd.grad(total, posterior.relays, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), posterior.relays)
    assert second.device.type == "fake"
    hidden = torch.rand(4, 3, device="fake")
    weight, x = torch.rand(D, 3, device="fake"), torch.rand(4, D, device="fake")
    x.requires_grad_()
    rvi_fast.linear_gaussian_log_likelihood(hidden, weight, None, x, 0.5).sum().backward()
    assert x.grad.isfinite().all()


def scaled_data():
    options = {"epochs": 2, "batch_size": 8, "lr": 0.01, "standardize": True, "progress": False}
    model, expected = made(device="fake"), made()
    fit(model, data(), **options)
    fit(expected, data(), **options)
    assert_same(model, expected)
    torch.testing.assert_close(impute(model, data()).cpu(), impute(expected, data()))


def several_models_side_by_side():
    options = {"epochs": 3, "batch_size": 8, "lr": 0.01, "progress": False}
    alone, together = ([made(builder, "fake") for builder in BUILDERS] for _ in range(2))
    calls = [{"model": model, "seed": seed} for seed, model in enumerate(together)]
    histories = fit_many(calls, x=data(), **options)
    for seed, (model, other) in enumerate(zip(alone, together, strict=True)):
        assert fit(model, data(), seed=seed, **options) == histories[seed]
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name].cpu(), value.cpu()), name


def swept(configuration, directory):
    """A run in a process of its own, which has to be told of the device too."""
    if "fake" not in _devices.DEVICES:
        prepare(*sys.argv[1:])
    asked = work(configuration, directory)
    arguments = next(asked)
    history = yield arguments
    assert {value.device.type for value in arguments["model"].parameters()} == {"fake"}
    try:
        asked.send(history)
    except StopIteration as end:
        return end.value


def a_sweep():
    common = {"rows": 60, "test_rows": 20, "epochs": 3, "batch_size": 16, "hidden": (6,)}
    common |= {"latent_dim": 3, "groups": (3, 4), "infer_steps": 4, "classifier_epochs": 1}
    runs = [Experiment(**common, latents=True, seed=seed) for seed in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        expected = sweep(runs, work, Path(folder) / "cpu", progress=False)
        out = Path(folder) / "fake"
        results = sweep(runs, swept, out, jobs=3, device="fake", progress=False)
        for run, result, wanted in zip(runs, results, expected, strict=True):
            for name in ("elastic", "loss", "test_missing", "cross_entropy", "off_data"):
                torch.testing.assert_close(
                    torch.tensor(result[name]), torch.tensor(wanted[name]), rtol=1e-4, atol=1e-5
                )
            kept = json.loads((directory_of(out, run) / "result.json").read_text())["made"]
            assert (kept["device"], kept["together"]) == ("fake", 3)


BUILDERS = (models.rvi, models.vad, models.vae, models.rvi)
RUNS = {
    "dense": (models.rvi, {"optimizer": "dense"}),
    "lazy": (models.rvi, {"optimizer": "lazy"}),
    "row": (models.rvi, {"optimizer": "row"}),
    "bfloat16 moments": (models.rvi, {"moment_dtype": torch.bfloat16}),
    "autodecoder": (models.vad, {}),
    "autoencoder": (models.vae, {}),
}
CASES = {
    "every op": (every_op_is_the_reference,),
    **{f"fit, {name}": (a_run_is_that_of_the_cpu, *run) for name, run in RUNS.items()},
    "host": (rows_in_host_memory, "host"),
    "file": (rows_in_host_memory, "file"),
    "checkpoint": (a_run_goes_on_from_a_checkpoint,),
    "a loop of one's own": (a_loop_of_ones_own,),
    "derivatives": (derivatives,),
    "scaled data": (scaled_data,),
    "several models": (several_models_side_by_side,),
    "a sweep": (a_sweep,),
}


def prepare(library, float64):
    """Makes the device known to this process."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", ops.FallbackWarning)
    # it would be given memory that nothing was written to
    warnings.filterwarnings("error", message=".*appears to be a view operator")
    register(library)
    _devices.DEVICES["fake"] = _devices.Device(has_float64=float64 == "1", hosts=True)
    torch.set_num_threads(1)


def main(*arguments):
    prepare(*arguments)
    return run_cases(CASES, lambda case, *arguments: case(*arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
