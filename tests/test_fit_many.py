"""Several models side by side: each as its own fit leaves it, whatever happens to the others."""

import contextlib
import copy
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rvi_fast
from rvi_fast import EarlyStopping, History, fit, fit_many, likelihoods, models
from rvi_fast._devices import in_line
from rvi_fast.training import FitManyError, load_checkpoint
from rvi_fast.training.inputs.sources import is_mapped
from rvi_fast.training.loop.interrupts import Interrupted, Request
from rvi_fast.training.many import in_turn
from rvi_fast.training.many.call import Call
from rvi_fast.training.many.carrier import Carrier
from rvi_fast.training.settings import Settings

N, D = 60, 5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
X[3, 2] = X[7] = torch.nan
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.7
PIXELS = torch.arange(N * D).remainder(251).reshape(N, D).to(torch.uint8)
SHORT = {"epochs": 3, "batch_size": 16, "lr": 0.02}


@pytest.fixture(autouse=True)
def signals_as_a_shell_leaves_them():
    """Whoever runs the tests in the background, or under nohup, has some of them ignored."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in wanted.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


class OwnLikelihood(nn.Module):
    """A Laplace law that is no `Likelihood`."""

    def __init__(self):
        super().__init__()
        self.num_features = D
        self.log_scale = nn.Parameter(torch.zeros(D))

    def forward(self, x, outputs, mask=None):
        missing = torch.isnan(x)
        errors = (torch.where(missing, outputs.detach(), x) - outputs).abs()
        return -(errors * torch.exp(-self.log_scale) + ~missing * self.log_scale).sum(-1)

    def mean(self, outputs):
        return outputs


class OwnModel(models.LatentModel):
    """Counts its calls in a buffer that no state_dict holds."""

    def __init__(self):
        posterior = rvi_fast.RelayPosterior(N, 3, groups=(4,))
        super().__init__(posterior, nn.Linear(3, D), OwnLikelihood())
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, *args, **kwargs):
        self.calls += 1
        return super().forward(*args, **kwargs)


def make(seed=0, builder=models.rvi, num_data=N, **options):
    torch.manual_seed(seed)
    options = {"groups": (3, 4), **options} if builder is models.rvi else options
    return builder(num_data, D, latent_dim=3, **{"hidden": (6,), **options})


def noisy(model):
    """With numbers that modules draw, and statistics of batches."""
    model.decoder.insert(1, nn.Dropout(0.3))
    model.decoder.insert(1, nn.BatchNorm1d(6))
    return model


def rising(epoch):
    return 0.5 + epoch / 10


def own_model():
    torch.manual_seed(5)
    return OwnModel()


def variants(place):
    """Runs of every kind that process and thread could make a difference to; the same each time."""
    place.mkdir()
    np.save(place / "x.npy", np.concatenate((X.numpy(), X.numpy())))
    mapped = np.load(place / "x.npy", mmap_mode="r")
    masked = np.ma.MaskedArray(X.double().numpy(), ~MASK.numpy())
    counts = X.nan_to_num().abs().round()
    return {
        "seed": {"model": make(), "x": X, "seed": 3},
        "learning rate": {"model": make(), "x": X, "lr": 0.05, "posterior_lr": 0.01},
        "mask": {"model": make(1), "x": X.nan_to_num(), "mask": MASK},
        "subset": {"model": make(2, num_data=40), "x": X[20:], "optimizer": "lazy"},
        "noise": {"model": noisy(make(3)), "x": X, "kl_weight": rising},
        "pixels": {"model": make(4), "x": PIXELS, "mask": MASK, "moment_dtype": torch.bfloat16},
        "encoder": {"model": noisy(make(5, models.vae)), "x": X},
        "own": {"model": own_model(), "x": X, "standardize": False},
        "map": {"model": make(6), "x": mapped[N - 1 :: -1], "block_rows": 20},
        "data set": {"model": make(7), "x": TensorDataset(X), "optimizer": "row"},
        "masked array": {"model": make(8), "x": masked},
        "counts": {"model": make(9, likelihood="poisson"), "x": counts},
        "files": {"model": make(10, storage=place / "tables"), "x": X, "block_rows": 20},
        "stopped": {"model": make(11), "x": X, "callbacks": [EarlyStopping(1, min_delta=9.0)]},
    }


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(model, other):
    assert model.trained_on == other.trained_on
    assert tensors(model).keys() == tensors(other).keys()
    for name, tensor in tensors(model).items():
        assert torch.equal(tensor, tensors(other)[name]), name
    assert [part.training for part in model.modules()] == [p.training for p in other.modules()]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_run_is_bit_for_bit_its_own_fit(tmp_path, jobs):
    alone, together = variants(tmp_path / "alone"), variants(tmp_path / "together")
    expected = [fit(**SHORT | run, progress=False) for run in alone.values()]
    before = torch.get_rng_state()
    parameters = [list(run["model"].parameters()) for run in together.values()]
    found = fit_many(list(together.values()), jobs=jobs, progress=False, **SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == expected
    assert all(type(history) is History for history in found)
    for run, other, owned in zip(together.values(), alone.values(), parameters, strict=True):
        assert_same(run["model"], other["model"])
        # in place: whoever holds a parameter sees it trained
        kept = zip(run["model"].parameters(), owned, strict=True)
        assert all(parameter is own for parameter, own in kept)
    assert together["own"]["model"].calls == 12
    assert len(found[-1]["loss"]) == 2


def test_threads_of_a_run_are_its_own():
    """The ops of a small decoder are serial where those of a large one are not."""
    seen, before = {"small": set(), "large": set()}, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for name, hidden in (("small", (6,)), ("large", (600, 600))):
            look = [lambda *_, name=name: seen[name].add(torch.get_num_threads())]
            runs.append({"model": make(hidden=hidden), "x": X, "callbacks": look})
        fit_many(runs, jobs=1, progress=False, **SHORT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {"small": {1}, "large": {2}}


def test_a_run_that_ends_first_takes_no_gradients_from_the_others():
    runs = [{"model": own_model(), "epochs": epochs} for epochs in (1, 3)]
    with torch.no_grad():
        histories = fit_many(runs, x=X, jobs=1, progress=False, **SHORT | {"standardize": False})
        assert not torch.is_grad_enabled()
    whole = own_model()
    options = {**SHORT, "standardize": False, "progress": False}
    assert fit(whole, X, **options) == histories[1]
    assert_same(runs[1]["model"], whole)


def test_a_process_has_one_thread_and_warns_here(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what it would have by itself
    x = X.clone()
    x[:, 4] = torch.nan
    record = [Recorder(tmp_path / f"{number}") for number in range(2)]
    runs = [
        {"model": make(), "x": [X, x][number], "callbacks": [record[number]]} for number in (0, 1)
    ]
    with pytest.warns(UserWarning, match=r"runs\[1\]: x: nothing is observed in column 4"):
        fit_many(runs, jobs=2, progress=False, **SHORT)
    assert {(tmp_path / f"{number}").read_text() for number in range(2)} == {"1"}


class Recorder:
    """A callback that can be pickled."""

    def __init__(self, path):
        self.path = path

    def __call__(self, model, history):
        self.path.write_text(str(torch.get_num_threads()))


def test_a_bar_counts_the_steps_of_all_runs(tmp_path, capsys):
    """Those before a resume and those that early stopping spares included."""
    fit(make(), X, run_dir=tmp_path, progress=False, **SHORT | {"epochs": 2})
    runs = [
        {"model": make(), "run_dir": tmp_path, "resume": True},
        {"model": make(1), "callbacks": [EarlyStopping(1, min_delta=9.0)], "epochs": 50},
    ]
    histories = fit_many(runs, x=X, jobs=1, **SHORT | {"epochs": 3})
    assert [history.epochs for history in histories] == [3, 2]
    assert "212/212" in capsys.readouterr().err
    settings = Settings(run_dir=tmp_path, resume=True, progress=False, **SHORT | {"epochs": 5})
    counts = []
    in_turn.train_in_turn([Call(make(), X, None, settings)], Request(), counts.append)
    assert counts == [12, 4, 4, 0]


def test_data_lie_in_memory_once_and_bring_no_others_along(tmp_path):
    carrier, wide = Carrier(tmp_path), torch.randn(1000, 40)
    part = wide[100:200, 3:8]
    one, other = carrier.put(part), carrier.put(part)
    assert one is other
    assert carrier.put(None) is None
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 10_000
    found = one()
    assert torch.equal(found, part)
    assert found is one()  # the next run of the same process
    if sys.platform == "linux":
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ends = [line[0].split("-") for line in maps if line[-1] == str(path)]
        assert any(int(a, 16) <= found.data_ptr() < int(b, 16) for a, b in ends)
    np.save(tmp_path / "x.npy", wide.numpy())
    for rows in (slice(None), slice(3, 90, 2), slice(80, 3, -3)):
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")[rows, 2:30]
        there = carrier.put(mapped)()
        assert is_mapped(there)
        np.testing.assert_array_equal(there, mapped)
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[0, 0] = 9.0  # not in the file
    np.testing.assert_array_equal(carrier.put(private)(), private)
    assert len(list(tmp_path.glob("data-*"))) == 2


WRONG = {
    "no mapping": ([{}, 3], r"runs\[1\]: expected arguments of fit by their names, got int"),
    "unknown": (
        [{}, {"learning_rate": 1}],
        r"runs\[1\]: expected arguments of fit, got learning_rate",
    ),
    "bar": ([{"progress": True}], r"runs\[0\]: expected arguments of fit, got progress"),
    "range": ([{}, {"lr": -1.0}], r"runs\[1\]: lr: expected"),
    "no model": ([{"model": None}], r"runs\[0\]: model: expected a LatentModel, got NoneType"),
    "rows": ([{}, {"x": X[:9]}], r"runs\[1\]: x: expected 60 rows"),
    "resume": ([{"resume": True}], r"runs\[0\]: run_dir: expected a directory to resume from"),
}


@pytest.mark.parametrize(("runs", "words"), WRONG.values(), ids=list(WRONG))
def test_wrong_arguments_name_their_run_before_anything_is_trained(runs, words):
    made = [make(seed) for seed in range(len(runs))]
    before = copy.deepcopy(made)
    runs = [
        {"model": model, **run} if isinstance(run, dict) else run
        for model, run in zip(made, runs, strict=True)
    ]
    with pytest.raises((ValueError, TypeError), match=words):
        fit_many(runs, x=X, jobs=2, progress=False, **SHORT)
    for model, other in zip(made, before, strict=True):
        assert_same(model, other)
    with pytest.raises(ValueError, match="jobs: expected"):
        fit_many([], jobs=0)
    assert fit_many([]) == []


def test_what_two_runs_would_both_write_to_is_refused(tmp_path):
    model, other = make(), make(1)
    with pytest.raises(
        ValueError, match=r"runs\[1\]: model: expected one of its own, which runs\[0\]"
    ):
        fit_many([{"model": model}, {"model": model}], x=X)
    other.likelihood = model.likelihood
    with pytest.raises(ValueError, match=r"runs\[1\]: model: expected parameters of its own"):
        fit_many([{"model": model}, {"model": other}], x=X)
    runs = [{"model": make(seed), "run_dir": tmp_path} for seed in range(2)]
    with pytest.raises(ValueError, match=r"runs\[1\]: run_dir: expected one of its own"):
        fit_many(runs, x=X)


@pytest.mark.parametrize("name", ["kl_weight", "callbacks"])
def test_what_no_process_can_be_given_is_refused_and_trained_here(name):
    value = {"kl_weight": lambda epoch: 1.0, "callbacks": [lambda *_: None]}[name]
    runs = [{"model": make(seed), name: value} for seed in range(2)]
    with pytest.raises(
        TypeError, match=rf"runs\[0\]: {name}: expected what other processes.*jobs=1"
    ):
        fit_many(runs, x=X, jobs=2, progress=False, **SHORT)
    expected = fit(make(), X, progress=False, **SHORT)
    assert fit_many(runs, x=X, jobs=1, progress=False, **SHORT)[0] == expected


class Dying:
    """A callback that ends its process."""

    def __call__(self, model, history):
        os.kill(os.getpid(), signal.SIGKILL)


def failing(place):
    """Runs of which two fail, at their beginning and midway."""
    infinite = X.clone()
    infinite[5, 1] = torch.inf
    broken = make(2)
    with torch.no_grad():
        broken.likelihood.log_scale.fill_(torch.nan)
    return [
        {"model": make(), "x": X, "run_dir": place},
        {"model": make(1), "x": infinite},
        {"model": broken, "x": X},
        {"model": make(3), "x": X, "seed": 4},
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_that_fail_are_named_and_the_others_are_done(tmp_path, jobs):
    alone, together = failing(tmp_path / "alone"), failing(tmp_path / "together")
    expected = []
    for run in alone:
        with contextlib.suppress(ValueError, FloatingPointError):
            expected.append(fit(**SHORT | run, progress=False))
    with pytest.raises(FitManyError, match="2 of 4 runs failed") as caught:
        fit_many(together, jobs=jobs, progress=False, **SHORT)
    error = caught.value
    assert "\nruns[1]: ValueError: x: expected finite numbers" in str(error)
    assert "\nruns[2]: FloatingPointError: the loss became nan at step 0" in str(error)
    assert [type(error.errors[number]) for number in (1, 2)] == [ValueError, FloatingPointError]
    assert [history is None for history in error.histories] == [False, True, True, False]
    assert [error.histories[number] for number in (0, 3)] == expected
    for run, other in zip(together, alone, strict=True):
        values, others = tensors(run["model"]), tensors(other["model"])
        assert values.keys() == others.keys()
        for name in values:
            torch.testing.assert_close(values[name], others[name], rtol=0, atol=0, equal_nan=True)
    assert not multiprocessing.active_children()


def test_a_process_that_dies_leaves_its_model_as_it_was():
    runs = [{"model": make(seed), "x": X} for seed in range(3)]
    before = copy.deepcopy(runs[1]["model"])
    runs[1]["callbacks"] = [Dying()]
    with pytest.raises(FitManyError, match=r"1 of 3 .*\n.*runs\[1\]: ProcessDied: .*exit code -9"):
        fit_many(runs, jobs=2, progress=False, **SHORT)
    assert_same(runs[1]["model"], before)
    for number in (0, 2):
        other = make(number)
        fit(other, X, progress=False, **SHORT)
        assert_same(runs[number]["model"], other)


def test_a_full_disk_is_an_error_of_the_run_that_it_meets(monkeypatch):
    runs = [{"model": make(seed), "x": X} for seed in range(3)]
    before, save = copy.deepcopy(runs[1]["model"]), torch.save

    def full(value, path):
        if path.name == "call-1.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(value, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FitManyError, match=r"1 of 3 .*\nruns\[1\]: OSError: .*No space left"):
        fit_many(runs, jobs=2, progress=False, **SHORT)
    assert_same(runs[1]["model"], before)
    other = make(2)
    fit(other, X, progress=False, **SHORT)
    assert_same(runs[2]["model"], other)


def test_a_second_ctrl_c_lets_go_of_all_models_of_this_process():
    def twice(model, history):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    runs = [{"model": make(seed), "x": X, "callbacks": [twice]} for seed in range(3)]
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_many(runs, jobs=1, progress=False, **SHORT)
    assert not isinstance(caught.value, Interrupted)
    for run in runs:
        assert run["model"].posterior._row_optimizer is None
        assert torch.isfinite(run["model"].reconstruct()).all()


class Slowly:
    """A callback that gives a signal time to come."""

    def __call__(self, model, history):
        time.sleep(0.2)


def signalled(condition, times=1):
    """Sends this process SIGINT once the condition holds, in a thread."""

    def wait():
        while not condition():
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_all_runs_with_checkpoints_that_resume_to_the_same_bits(tmp_path, jobs):
    def runs(number=3):
        return [
            {"model": noisy(make(seed)), "run_dir": tmp_path / f"{seed}", "callbacks": [Slowly()]}
            for seed in range(number)
        ]

    length = {**SHORT, "epochs": 12}
    stopped = runs()
    thread = signalled(lambda: (tmp_path / "0/metrics.jsonl").exists())
    with pytest.raises(Interrupted, match=r"of 3 runs not done:\nruns") as caught:
        fit_many(stopped, x=X, jobs=jobs, progress=False, **length)
    thread.join()
    assert "resume=True" in str(caught.value)
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # the models are what the checkpoints hold, where a run had begun
    begun = [run for run in stopped if (run["run_dir"] / "metrics.jsonl").exists()]
    assert begun
    for run in begun:
        held = load_checkpoint(run["run_dir"]).tensors["model"]
        assert torch.equal(held["posterior.relays"], run["model"].posterior.relays)
        assert torch.isfinite(run["model"].reconstruct()).all()
        assert load_checkpoint(run["run_dir"]).epoch < 12
    resumed = runs()
    histories = fit_many(resumed, x=X, jobs=jobs, progress=False, resume=True, **length)
    for seed, run in enumerate(resumed):
        whole = noisy(make(seed))
        assert fit(whole, X, progress=False, **length) == histories[seed]
        assert_same(run["model"], whole)


class Stuck:
    """A callback that hears no signal."""

    def __init__(self, path):
        self.path = path

    def __call__(self, model, history):
        self.path.touch()
        time.sleep(300)


def test_a_second_ctrl_c_ends_all_processes_at_once(tmp_path):
    runs = [
        {"model": make(seed), "x": X, "callbacks": [Stuck(tmp_path / f"{seed}")]} for seed in (0, 1)
    ]
    before = copy.deepcopy(runs[0]["model"])
    thread = signalled(lambda: len(list(tmp_path.iterdir())) == 2, times=2)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit_many(runs, jobs=2, progress=False, **SHORT)
    assert time.monotonic() - started < 200
    thread.join()
    assert not multiprocessing.active_children()
    assert_same(runs[0]["model"], before)


SCRIPT = """
import torch, rvi_fast
x = torch.randn(20, 3)
models = [rvi_fast.models.rvi(20, 3, latent_dim=2, groups=(2,)) for _ in range(2)]
rvi_fast.fit_many([{"model": model} for model in models], x=x, epochs=1, jobs=2, progress=False)
"""


STOPPED = """
import sys, time
import torch, rvi_fast

def slow(model, history):
    time.sleep(0.1)

if __name__ == "__mp_main__" and sys.argv[1] == "starting":
    open("starting", "w").close()
    time.sleep(1.0)
if __name__ == "__main__":
    x, runs = torch.randn(20, 3), []
    for number in range(3):
        model = rvi_fast.models.rvi(20, 3, latent_dim=2, groups=(2,))
        runs.append({"model": model, "run_dir": f"run{number}"})
    print("begun", flush=True)
    try:
        rvi_fast.fit_many(runs, x=x, epochs=1000, jobs=2, progress=False, callbacks=[slow])
    except KeyboardInterrupt as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""


@pytest.mark.parametrize("moment", ["starting", "training"])
def test_ctrl_c_of_a_terminal_is_heard_by_the_parent_alone(tmp_path, moment):
    """It reaches all processes, and none dies over it, however early."""
    (tmp_path / "script.py").write_text(STOPPED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "script.py", moment],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begun\n"
    awaited = {
        "starting": ["starting"],
        "training": ["run0/metrics.jsonl", "run1/metrics.jsonl"],
    }[moment]
    while not all((tmp_path / name).exists() for name in awaited):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert (said, errors, process.returncode) == ("Interrupted 3 of 3 runs not done:\n", "", 0)
    begun = sum((tmp_path / f"run{number}/checkpoints").exists() for number in range(3))
    assert begun == (2 if moment == "training" else 0)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs `if __name__ == '__main__':` around what it does" in done.stderr


def test_a_class_of_a_session_is_refused_before_any_process_is_started():
    code = SCRIPT.replace("models = [", "class Own(torch.nn.Linear): pass\nmodels = [")
    code = code.replace(
        "rvi_fast.fit_many", "models[1].decoder.append(Own(3, 3))\nrvi_fast.fit_many"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "runs[1]: model: expected what other processes can be given" in done.stderr
    assert "Own is of this session" in done.stderr


def test_each_run_on_a_gpu_works_on_a_stream_of_its_own(monkeypatch):
    """Shown without one, with stand-ins: streams wait for the caller's, and it for them."""
    waits, now, made = [], ["caller"], []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            waits.append((self.name, other.name))

        def synchronize(self):
            waits.append(("host", self.name))

    def own(device):
        made.append(Stream(f"own {len(made)}"))
        return made[-1]

    @contextlib.contextmanager
    def stream(chosen):
        now.append(chosen.name)
        try:
            yield
        finally:
            now.pop()

    def steps(call, request, count, shared):
        seen = call.settings
        for _ in range(3):
            seen.append(now[-1])
            yield
        return History()

    monkeypatch.setattr(torch.cuda, "Stream", own)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(now[-1]))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(in_turn, "steps_of", steps)
    calls = [SimpleNamespace(device=torch.device("cuda"), settings=[]) for _ in range(2)]
    outcomes = in_turn.train_in_turn(calls, Request(), lambda steps: None)
    assert [outcome.history for outcome in outcomes] == [History(), History()]
    assert [call.settings for call in calls] == [["own 0"] * 3, ["own 1"] * 3]
    assert waits[:2] == [("own 0", "caller"), ("own 1", "caller")]
    assert {*waits[2:]} == {("host", "own 0"), ("host", "own 1")}


def test_threads_beside_a_run_stand_in_line_with_it(tmp_path, monkeypatch):
    """On a GPU they work on the stream that the run is on, and not on that of the device."""
    seen = set()
    for place in ("inputs.feed", "places.in_blocks"):
        monkeypatch.setattr(
            f"rvi_fast.training.{place}.in_line",
            lambda device: lambda: seen.add(threading.current_thread().name),
        )
    np.save(tmp_path / "x.npy", X.numpy())
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    fit(make(), x, block_rows=20, progress=False, **SHORT)
    assert seen == {"rvi_fast reads ahead", "rvi_fast moves blocks_0"}


def test_a_thread_in_line_works_on_the_stream_of_the_one_that_asked(monkeypatch):
    streams = threading.local()
    streams.own = "of the run"
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.own)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(streams, "own", stream))
    begin, found = in_line(torch.device("cuda")), []
    thread = threading.Thread(target=lambda: (begin(), found.append(streams.own)))
    thread.start()
    thread.join()
    assert found == ["of the run"]


def test_runs_of_the_same_data_in_one_process_share_what_is_made_of_them(monkeypatch):
    seen = []
    run = in_turn.steps_of

    def spied(call, request, count, shared):
        seen.append(shared)
        return run(call, request, count, shared)

    monkeypatch.setattr(in_turn, "steps_of", spied)
    calls = [Call(make(s), X, None, Settings(**SHORT, progress=False)) for s in range(3)]
    calls.append(Call(make(3), X.clone(), None, calls[0].settings))
    in_turn.train_in_turn(calls, Request(), lambda steps: None)
    assert all(shared is seen[0] for shared in seen)
    assert len(seen[0]._made) == 2


def test_a_law_that_restricts_its_data_looks_at_what_another_run_has_made():
    x = torch.full((N, D), 0.5)
    runs = [{"model": make()}, {"model": make(likelihood=likelihoods.Bernoulli(D))}]
    runs[1]["model"].last_bias.data.fill_(0.1)  # or where it starts would look at them
    with pytest.raises(
        FitManyError, match=r"1 of 2 runs failed:\nruns\[1\]: ValueError: x: expected"
    ):
        fit_many(runs, x=x, jobs=1, progress=False, standardize=False, **SHORT)
