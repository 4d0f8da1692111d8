"""Several processes train encoders, and decoders and likelihoods of one's own, as one process does."""

import warnings

import distributed_worker as worker
import pytest
import torch
from distributed_worker import TOLERANCE, alone, assert_close, assert_equal, together
from torch import nn

import rvi_fast
from rvi_fast import cli
from rvi_fast.cli import building
from rvi_fast.training import callbacks, distributed, export
from rvi_fast.training.loop.checks import CollapseWarning

N, D = worker.N, worker.D

# so few steps teach an encoder nothing
pytestmark = pytest.mark.filterwarnings("ignore:the posteriors of all rows are the prior")

# models


class Views(nn.Module):
    """A decoder as people write them: it takes no batch of no rows, and counts its calls."""

    def __init__(self, inputs=4, outputs=D):
        super().__init__()
        self.first, self.norm = nn.Linear(inputs, 12), nn.GroupNorm(3, 12)
        self.last = nn.Conv1d(3, 2, 3, padding=1)
        self.out = nn.utils.parametrizations.spectral_norm(nn.Linear(8, outputs))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, z):
        if self.training:
            self.calls += 1
        hidden = nn.functional.gelu(self.norm(self.first(z)))
        return self.out(self.last(hidden.view(len(z), 3, -1)).view(len(z), -1))


class Cauchy(nn.Module):
    """A likelihood that is nothing to the package but a module."""

    num_features = D

    def __init__(self):
        super().__init__()
        self.log_width = nn.Parameter(torch.zeros(D))

    def forward(self, x, outputs, mask=None):
        seen = ~torch.isnan(x) if mask is None else mask
        wrong = (torch.where(seen, x, 0.0) - outputs) / self.log_width.exp()
        density = -wrong.square().log1p() - self.log_width - torch.log(torch.tensor(torch.pi))
        return torch.where(seen, density, 0.0).sum(-1)

    def mean(self, outputs):
        return outputs


def vae(shard=None, *, kind="vae", dtype=torch.float32, **_):
    torch.manual_seed(3)
    sizes = {"latent_dim": 4, "hidden": (7,), "mask_input": True}
    steps = 4 if kind == "refined" else 0
    return rvi_fast.models.vae(N, D, refine_steps=steps, shard=shard, **sizes).to(dtype)


def own(shard=None, *, kind="rows", dtype=torch.float32, **_):
    """Decoder and likelihood of one's own, over rows or over an encoder of one's own."""
    torch.manual_seed(3)
    if kind == "encoder":
        posterior = rvi_fast.EncoderPosterior(Views(D, 8), N, D, 4, shard=shard)
    else:
        posterior = rvi_fast.RelayPosterior(N, 4, groups=(3, 5), shard=shard)
    decoder = nn.Sequential(Views(), nn.Dropout(0.5)) if kind == "dropout" else Views()
    if kind == "compiled":
        decoder = torch.compile(decoder, backend="eager")
    return rvi_fast.models.LatentModel(posterior, decoder, Cauchy()).to(dtype)


# the same training

MAKE = {"vae": vae, "refined": vae, "rows": own, "encoder": own, "compiled": own, "dropout": own}


def changes_of(kind, dtype):
    plain = {"kind": kind, "dtype": dtype}
    decayed = {"decoder_weight_decay": 2.0, "standardize": False}
    return plain if MAKE[kind] is vae else {**plain, **decayed}


def each(rank, size, cases):
    """The state after each training, one after another in the same processes."""
    return [
        worker.train(rank, size, make_model=MAKE[case[0]], **changes_of(*case)) for case in cases
    ]


SINGLE, DOUBLE = (torch.float32, TOLERANCE), (torch.float64, 1e-11)


@pytest.mark.parametrize(
    ("size", "cases"),
    [
        (1, [("vae", torch.float32, 0.0), ("rows", torch.float32, 0.0)]),
        (2, [("vae", *SINGLE), ("refined", *DOUBLE), ("compiled", *SINGLE)]),
        (4, [("vae", *DOUBLE), ("rows", *DOUBLE), ("encoder", *DOUBLE)]),
    ],
)
def test_processes_train_the_encoders_and_modules_that_one_trains(tmp_path, size, cases):
    # 13 steps an epoch, of three rows each: most of four processes have none of them
    parts = worker.run(size, each, tmp_path, cases=[case[:2] for case in cases])
    for (kind, dtype, tolerance), states in zip(cases, zip(*parts, strict=True), strict=True):
        got = together(states)
        calls = {int(value) for name, value in got.items() if name.endswith("calls")}
        assert calls == (set() if MAKE[kind] is vae else {26})
        assert_close(got, alone(make=MAKE[kind], **changes_of(kind, dtype)), tolerance)


def test_rows_of_a_shard_draw_what_they_draw_in_the_whole_table():
    x, index = worker.table(), torch.arange(10, 25)
    whole, shard = vae().posterior, vae(range(10, 25)).posterior
    z, kl = whole(index, x[index], seed=5)
    own = shard(index - 10, x[index], seed=5)
    assert torch.equal(own.z, z)
    assert torch.equal(own.kl, kl)
    drawn = shard.draw(index - 10, torch.tensor([5]), index, x=x[index])
    assert torch.equal(drawn.z, z)


def test_dropout_draws_in_each_process_and_repeats_with_as_many(tmp_path):
    case = ("dropout", torch.float32)
    got, again = map(together, zip(*worker.run(2, each, tmp_path, cases=[case] * 2), strict=True))
    assert_equal(again, got)
    expected = alone(make=own, **changes_of(*case))
    # the same distribution, other numbers
    assert got["history"]["loss"] == pytest.approx(expected["history"]["loss"], rel=0.2)
    assert got["history"]["loss"] != expected["history"]["loss"]


# runs


def test_any_number_of_processes_goes_on_with_an_encoder(tmp_path):
    run_dir = tmp_path / "run"
    changes = {"make_model": vae, "kind": "refined", "dtype": torch.float64, "held_out": 0.2}
    changes |= {"run_dir": run_dir, "resume": True, "checkpoint_every": 0.0}
    for epochs, size in enumerate((2, 4), start=1):
        folder = tmp_path / str(epochs)
        got = together(worker.run(size, worker.train, folder, epochs=epochs, **changes))
        assert rvi_fast.load(run_dir).num_data == N
    expected = alone(3, make=vae, kind="refined", dtype=torch.float64, held_out=0.2)
    # the last epoch without shards
    model = vae(kind="refined", dtype=torch.float64)
    x, others = worker.table(dtype=torch.float64), {"run_dir": run_dir, "resume": True}
    history = rvi_fast.fit(model, x, **worker.options(epochs=3, held_out=0.2, **others))
    assert len(got["history"]["held_out"]) == 2
    assert_close({**model.state_dict(), "history": dict(history)}, expected, 1e-11)
    loaded = rvi_fast.load(run_dir)
    assert_equal({**loaded.state_dict(), "history": 0}, {**model.state_dict(), "history": 0})


def asked(rank, size, path):
    """What the callbacks of a run have done, what the process was told, and what it can write."""
    table = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    stop = rvi_fast.EarlyStopping(1, quantity="held_out", min_delta=1e3)
    kept = callbacks.Checkpoint(path / "best-{epoch}.safetensors", every=1)
    model = vae(distributed.rows_of_rank(N))
    options = {"held_out": 0.2, "callbacks": [stop, kept], "kl_weight": 1e3, "epochs": 9}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = rvi_fast.fit(model, table, **worker.options(**options))
    export(model, path / f"{rank}.safetensors")
    return history.epochs, sum(one.category is CollapseWarning for one in told)


def test_callbacks_warnings_and_exports_know_the_encoder_of_all_processes(tmp_path):
    found = worker.run(2, asked, tmp_path / "processes", path=tmp_path)
    assert found == [(2, 1), (2, 0)]
    last = rvi_fast.load(tmp_path / "best-2.safetensors")
    assert last.num_data == N
    for rank in range(2):
        model = rvi_fast.load(tmp_path / f"{rank}.safetensors")
        assert_equal({**model.state_dict(), "history": 0}, {**last.state_dict(), "history": 0})


def test_the_command_line_gives_each_process_its_rows_of_a_vae(monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: True)
    monkeypatch.setattr(distributed, "rows_of_rank", lambda _: range(19, N))
    arguments = cli.make_parser().parse_args(
        ["train", "--data", "x.npy", "--run-dir", "run", "--model", "vae", "--refine-steps", "2"]
    )
    model, shard = building.build_model(arguments, (N, D), "gaussian")
    posterior = model.posterior
    assert shard == range(19, N)
    assert (posterior.num_data, posterior.first_row, posterior.table_size) == (18, 19, N)


# what is refused


class Average(nn.Linear):
    """Remembers the mean of what it is called with."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mean", torch.zeros(sizes[0]))

    def forward(self, z):
        if self.training:
            self.mean.lerp_(z.detach().mean(0), 0.1)
        return super().forward(z)


class Frozen(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


def refused(rank, size):
    """What `fit` says about each decoder, and about an encoder with batch normalisation."""

    def told(model):
        try:
            rvi_fast.fit(model, worker.table(), **worker.options(batch_size=5))
        except ValueError as error:
            return str(error)
        return "nothing"

    shard = distributed.rows_of_rank(N)
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, D))
    decoders = (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, D)),
        nn.Sequential(nn.Linear(4, 5), Frozen(5), nn.Linear(5, D)),
        wrapped,
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Average(5, D)),
        nn.Linear(4, D).half(),
    )
    models = [
        rvi_fast.models.LatentModel(
            rvi_fast.RelayPosterior(N, 4, groups=(3, 5), shard=shard),
            decoder,
            rvi_fast.GaussianLikelihood(D),
        )
        for decoder in decoders
    ]
    models.append(vae(shard))
    models[-1].posterior.encoder.append(nn.BatchNorm1d(8))
    return [told(model) for model in models]


def test_modules_that_processes_cannot_train_as_one_are_refused_by_name(tmp_path):
    first, second = worker.run(2, refused, tmp_path)
    assert first == second
    normalised, frozen, wrapped, remembers, half, encoder = first
    assert normalised.startswith("decoder.1: expected no batch normalisation where 2 processes")
    assert frozen == "nothing"
    assert wrapped.startswith("decoder: expected a module as it was made, whose gradients fit sums")
    assert wrapped.endswith("got a DistributedDataParallel")
    assert remembers.startswith("decoder.2.mean: expected a buffer that is the same in all")
    assert half.startswith("model: expected relays or encoder, decoder and scale all float32")
    assert encoder.startswith("posterior.encoder.3: expected no batch normalisation")


def test_what_is_wrapped_around_a_whole_model_is_refused():
    compiled = torch.compile(vae(), backend="eager")
    with pytest.raises(TypeError, match="model: expected a LatentModel, got a OptimizedModule"):
        rvi_fast.fit(compiled, worker.table(), **worker.options())


def test_a_shard_of_an_encoder_cannot_grow():
    with pytest.raises(ValueError, match="expected all 37 rows for extend, got a shard of 10"):
        vae(range(10)).posterior.extend(3)
    with pytest.raises(ValueError, match="shard: expected rows between 0 and 37"):
        vae(range(30, 40))
