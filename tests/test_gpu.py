"""What only a GPU can show: `pytest -m gpu`, a part of `make gpu`."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import rvi_fast
from rvi_fast import ops, reference, testing
from rvi_fast.layout import RowLayout
from rvi_fast.training.loop import fused_step, inference_step

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
# none where the kernels do not serve the device, which `test_the_kernels_serve_the_device` reports
IMPLEMENTATIONS = (
    (testing.Implementation("triton", ops.implementation("cuda"), device="cuda"),)
    if torch.cuda.is_available()
    else ()
)


def test_the_kernels_serve_the_device():
    assert ops.unused("cuda") == {}


class OnTheDevice:
    implementations = IMPLEMENTATIONS
    dtypes = (torch.float32,)


class TestRelaySample(OnTheDevice, testing.RelaySampleContract):
    pass


class TestLogLikelihood(OnTheDevice, testing.LogLikelihoodContract):
    pass


class TestLinearLogLikelihood(OnTheDevice, testing.LinearLogLikelihoodContract):
    pass


class TestRowAdam(OnTheDevice, testing.RowAdamContract):
    def test_bfloat16_moments_have_the_random_bits_of_the_reference(self):
        for width in (1, 7, 63, 139, 1030):
            self.check_rounding(IMPLEMENTATIONS[0], width)


class TestCatchUpAndSelect(OnTheDevice, testing.CatchUpAndSelectContract):
    pass


class TestRelayDecode(OnTheDevice, testing.RelayDecodeContract):
    pass


class TestBackwardToRows(OnTheDevice, testing.BackwardToRowsContract):
    pass


class TestLikelihoodRows(OnTheDevice, testing.LikelihoodRowsContract):
    pass


class TestSumGradients(OnTheDevice, testing.SumGradientsContract):
    pass


class TestFinishStep(OnTheDevice, testing.FinishStepContract):
    pass


class TestAdamStep(OnTheDevice, testing.AdamStepContract):
    pass


def digits():
    """A small table of pixels with a mask; three batches of 100 and a short one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (350, 64), generator=generator, dtype=torch.uint8)
    return x, torch.rand(350, 64, generator=generator) < 0.6


def train(device, *, capture=True, epochs=4, moment_dtype=None, storage="device", **options):
    torch.manual_seed(0)
    x, mask = digits()
    model = rvi_fast.models.rvi(
        len(x), 64, latent_dim=16, groups=(5, 9), hidden=(16,), storage=storage
    )
    history = rvi_fast.fit(
        model,
        x,
        mask=mask,
        epochs=epochs,
        batch_size=100,
        device=device,
        progress=False,
        capture=capture,
        moment_dtype=moment_dtype,
        **options,
    )
    return dict(history), {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_captured_steps_equal_the_others_bit_for_bit(moment_dtype):
    captured, plain = (
        train(CUDA, capture=capture, moment_dtype=moment_dtype) for capture in (True, False)
    )
    assert captured[0] == plain[0]
    testing.assert_bit_equal(captured[1], plain[1])


@pytest.mark.parametrize("optimizer", ["dense", "row"])
def test_captured_steps_follow_learning_rates_that_change(optimizer):
    schedule = rvi_fast.training.callbacks.LearningRate.cosine(6, warmup=2)
    captured, plain, still = (
        train(CUDA, capture=capture, epochs=6, optimizer=optimizer, callbacks=callbacks)
        for capture, callbacks in ((True, [schedule]), (False, [schedule]), (True, []))
    )
    assert captured[0] == plain[0] != still[0]
    testing.assert_bit_equal(captured[1], plain[1])


@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
def test_a_loop_of_ones_own_can_be_captured(mode):
    x, found = digits()[0].to(CUDA) / 255, []
    for captured in (False, True):
        torch.manual_seed(0)
        model = rvi_fast.models.rvi(len(x), 64, latent_dim=16, groups=(5, 9), hidden=(16,)).to(CUDA)
        model.posterior.sparse = True
        rows = rvi_fast.optim.RowAdam(model.posterior, mode=mode)
        others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
        shared = torch.optim.Adam(others, capturable=True)
        index, batch = (
            torch.zeros(50, dtype=torch.int64, device=CUDA),
            torch.zeros(50, 64, device=CUDA),
        )
        seed = torch.zeros(1, dtype=torch.int64, device=CUDA)

        def step(model=model, rows=rows, shared=shared, index=index, batch=batch, seed=seed):
            z, kl = model.posterior(index, seed=seed)
            loss = (kl - model.likelihood(batch, model.decoder(z))).mean()
            rows.zero_grad()
            shared.zero_grad()
            loss.backward()
            rows.step()
            shared.step()
            return loss.detach()

        graph, held, losses = torch.cuda.CUDAGraph(), None, []
        side = torch.cuda.Stream()
        for number in range(12):
            seed.fill_(number)
            index.copy_(torch.randint(len(x), (50,)))
            torch.index_select(x, 0, index, out=batch)
            if number < 2 or not captured:
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    losses.append(step().clone())
                torch.cuda.current_stream().wait_stream(side)
                continue
            if held is None:
                with torch.cuda.graph(graph):
                    held = step()
            rows.before_replay()
            graph.replay()
            losses.append(held.clone())
        found.append({"losses": torch.stack(losses), **model.state_dict()})
    testing.assert_bit_equal(*found)


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("kind", ["pixels", "numbers", "Dataset"])
def test_data_of_the_host_train_as_on_the_device(tmp_path, capture, kind):
    x, mask = digits()
    held = x if kind == "pixels" else torch.where(mask, x / 255, torch.nan)
    np.save(tmp_path / "x.npy", held.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    given = TensorDataset(held) if kind == "Dataset" else mapped
    found = []
    for table in (given, held):
        torch.manual_seed(0)
        model = rvi_fast.models.rvi(len(x), 64, latent_dim=16, groups=(5, 9), hidden=(16,))
        options = {"epochs": 6, "batch_size": 100, "device": CUDA, "progress": False}
        own = mask if kind == "pixels" else None
        history = rvi_fast.fit(model, table, mask=own, capture=capture, **options)
        found.append((dict(history), model.state_dict()))
    assert found[0][0] == found[1][0]
    testing.assert_bit_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("capture", [True, False])
def test_models_side_by_side_equal_each_its_own_fit(capture):
    x, mask = (part.to(CUDA) for part in digits())
    numbers = x.float()
    changes = [{}, {"lr": 0.01, "seed": 3}, {"optimizer": "row"}, {"storage": "host"}]
    changes += [{"x": numbers}, {"x": numbers, "seed": 5}, {"x": numbers[:250], "mask": mask[:250]}]
    changes.append({"x": numbers.cpu().numpy(), "block_rows": 60})
    options = {"epochs": 4, "batch_size": 100, "capture": capture, "progress": False}
    runs = []
    for _ in range(2):
        runs.append([])
        for seed, change in enumerate(changes):
            run = {"x": x, "mask": mask, **change}
            torch.manual_seed(seed)
            place = {"storage": run.pop("storage", "device"), "groups": (5, 9), "hidden": (16,)}
            model = rvi_fast.models.rvi(len(run["x"]), 64, latent_dim=16, **place).to(CUDA)
            runs[-1].append({"model": model, **run})
    together, alone = runs
    expected = [rvi_fast.fit(**run, **options) for run in alone]
    assert rvi_fast.fit_many(together, **options) == expected
    for run, other in zip(together, alone, strict=True):
        got, want = (each["model"].state_dict() for each in (run, other))
        testing.assert_bit_equal(got, want)


@pytest.mark.parametrize("place", ["host", "file"])
@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize(("optimizer", "block_rows"), [("dense", 9), ("row", 60)])
def test_tables_in_host_memory_train_as_on_the_device(
    tmp_path, place, capture, optimizer, block_rows
):
    options = {"optimizer": optimizer, "block_rows": block_rows, "capture": capture}
    expected = train(CUDA, **options)
    storage = tmp_path / "tables" if place == "file" else place
    got = train(CUDA, storage=storage, **options)
    assert got[0] == expected[0]
    testing.assert_bit_equal(got[1], expected[1])


@pytest.mark.parametrize("place", ["host", "file"])
def test_a_run_with_tables_in_host_memory_is_resumed_bit_for_bit(tmp_path, place):
    options = {"block_rows": 9, "checkpoint_every": 0, "resume": True}
    expected = train(CUDA, epochs=4, block_rows=9)
    storage = tmp_path / "tables" if place == "file" else place
    for epochs in (2, 4):
        got = train(CUDA, epochs=epochs, storage=storage, run_dir=tmp_path / "run", **options)
    assert got[0] == expected[0]
    testing.assert_bit_equal(got[1], expected[1])
    loaded = rvi_fast.load(tmp_path / "run", device=CUDA)
    assert loaded.posterior.rows.device.type == "cpu"
    assert loaded.posterior.relays.is_cuda
    testing.assert_bit_equal({n: v.cpu() for n, v in loaded.state_dict().items()}, expected[1])


def test_rows_in_host_memory_are_read_and_inferred_on_the_device():
    torch.manual_seed(0)
    x, mask = digits()
    here, there = (
        rvi_fast.models.rvi(len(x), 64, latent_dim=16, groups=(5, 9), hidden=(16,), storage=place)
        for place in ("device", "host")
    )
    there.load_state_dict(here.state_dict())
    here, there = here.to(CUDA), there.to(CUDA)
    index = torch.tensor([3, 349, 3], device=CUDA)
    for number in (index, index[:0], None):
        for read in ("mean", "std", "coefficients"):
            got, want = (getattr(m.posterior, read)(number) for m in (there, here))
            assert got.is_cuda
            assert torch.equal(got, want)
    got, want = (m.posterior(index, seed=5, num_samples=2) for m in (there, here))
    assert torch.equal(got.z, want.z)
    assert torch.equal(got.kl, want.kl)
    inferred = [
        rvi_fast.infer(m, x[:50], mask=mask[:50], steps=8, batch_size=20) for m in (there, here)
    ]
    assert not inferred[0].rows.is_cuda
    assert torch.equal(inferred[0].rows, inferred[1].rows.cpu())
    filled = [rvi_fast.impute(m, x, mask=mask) for m in (there, here)]
    assert torch.equal(*filled)


def test_a_gpu_holds_three_windows_of_a_table_in_host_memory():
    num_data, block_rows = 40_000, 500
    model = rvi_fast.models.rvi(num_data, 8, storage="host")
    x = torch.zeros(num_data, 8, dtype=torch.uint8)
    options = {"epochs": 1, "progress": False, "eval_every": 0, "device": CUDA, "capture": False}
    rvi_fast.fit(rvi_fast.models.rvi(300, 8), x[:300], **options)  # libraries and their buffers
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rvi_fast.fit(model, x, block_rows=block_rows, **options)
    used = torch.cuda.max_memory_allocated() - before
    expected = rvi_fast.estimate_memory(
        num_data,
        8,
        storage="host",
        block_rows=block_rows,
        data_dtype=torch.uint8,
        device="cuda",
    )
    # bringing rows up to date at the end takes copies of some thousand rows
    assert used < expected.device + 8192 * 8 * model.posterior.rows.shape[1] * 4
    assert used < 0.7 * model.posterior.rows.nbytes * 3


def test_two_runs_are_bit_equal():
    first, second = train(CUDA), train(CUDA)
    assert first[0] == second[0]
    testing.assert_bit_equal(first[1], second[1])


def test_the_gpu_trains_as_the_cpu_does():
    (gpu, _), (cpu, _) = train(CUDA), train("cpu")
    torch.testing.assert_close(
        torch.tensor(gpu["loss"]), torch.tensor(cpu["loss"]), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_six_launches_train_as_the_step_of_any_model_does(monkeypatch, moment_dtype):
    made = []

    class Watched(fused_step.FusedStep):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(fused_step, "FusedStep", Watched)
    six, _ = train(CUDA, moment_dtype=moment_dtype)
    assert len(made) == 1
    monkeypatch.setattr(fused_step, "launches_on", lambda _: None)
    plain, _ = train(CUDA, moment_dtype=moment_dtype)
    assert len(made) == 1
    torch.testing.assert_close(
        torch.tensor(six["loss"]), torch.tensor(plain["loss"]), rtol=1e-3, atol=0
    )


def test_captured_inference_is_the_same_bit_for_bit(monkeypatch):
    x, mask = digits()
    torch.manual_seed(0)
    model = rvi_fast.models.rvi(len(x), 64, latent_dim=16, groups=(5, 9), hidden=(16,)).to(CUDA)
    found = []
    for captured in (True, False):
        monkeypatch.setattr(inference_step, "graphs_on", lambda _, captured=captured: captured)
        found.append(rvi_fast.infer(model, x, mask=mask, steps=20, batch_size=100).rows.cpu())
    assert torch.equal(*found)


def test_bfloat16_data_lose_nothing_more():
    x = torch.randn(33, 50, device=CUDA)
    mean, scale = torch.randn(33, 50, device=CUDA), torch.tensor(0.7, device=CUDA)
    got = rvi_fast.gaussian_log_likelihood(x.bfloat16(), mean, scale)
    wanted = reference.gaussian_log_likelihood(x.bfloat16().double(), mean.double(), scale.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


def test_a_table_of_more_than_two_to_the_31_elements():
    layout = RowLayout.resolve(64, (25, 50, 100))
    num_data = 2**31 // layout.width + 1000
    if torch.cuda.mem_get_info()[0] < 1.2 * 4 * num_data * layout.width:
        pytest.skip("less than 10 GB of GPU memory free")
    posterior = rvi_fast.RelayPosterior(num_data, 64, sparse=True, device=CUDA)
    index = torch.arange(num_data - 50, num_data, device=CUDA)
    few = posterior.rows.detach()[index].cpu()
    z, kl = posterior(index, noise=torch.zeros(50, 64, device=CUDA))
    z_few, kl_few, *_ = reference.relay_sample_fwd(
        few.double(),
        posterior.relays.detach().cpu().double(),
        torch.arange(50),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 50, 64, dtype=torch.float64),
        list(layout.groups),
        list(layout.kept),
        layout.form,
        1,
    )
    torch.testing.assert_close(z.cpu().double(), z_few[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl.cpu().double(), kl_few, rtol=1e-5, atol=1e-4)


def test_a_row_number_outside_the_table_is_reported_when_the_device_is_waited_for():
    posterior = rvi_fast.RelayPosterior(10, 4, groups=(3,), device=CUDA)
    z, _ = posterior(torch.tensor([3, 10], device=CUDA))
    assert (z[1] == 0).all()
    with pytest.raises(IndexError, match="outside its table"):
        posterior.mean()
    posterior.mean()
