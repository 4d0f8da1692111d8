"""What outlives a RowAdam: copies, pickles, state_dicts, and a posterior whose constructor failed."""

import copy
import io
import math
import pickle
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

import rvi_fast
from rvi_fast import RelayPosterior, models
from rvi_fast.memory.room import InsufficientMemory
from rvi_fast.optim import MODES, RowAdam
from rvi_fast.optim.shared_adam import SharedAdam
from rvi_fast.testing import assert_bit_equal, training_step
from rvi_fast.training.loop.run import Run
from rvi_fast.training.places.in_memory import InMemory
from rvi_fast.training.runs.tables import RowTables

NUM_DATA = 40


def make_posterior(seed=0, **options):
    torch.manual_seed(seed)
    return RelayPosterior(NUM_DATA, 5, groups=(6,), **{"sparse": True} | options)


def trained(mode="dense", steps=7, **options):
    posterior = make_posterior(**options)
    optimizer = RowAdam(posterior, 0.05, mode=mode)
    for step in range(steps):
        training_step(posterior, optimizer, step)
    return posterior, optimizer


def through_torch_save(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), through_torch_save]


@pytest.mark.parametrize("make_copy", COPIES, ids=["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_copy_steps_on_bit_for_bit_with_the_posterior_copied_beside_it(mode, sparse, make_copy):
    posterior, optimizer = trained(mode, sparse=sparse)
    made = make_copy({"posterior": posterior, "rows": optimizer})
    copied, stepping = made["posterior"], made["rows"]
    assert stepping.posterior is copied
    assert copied._row_optimizer is stepping
    for step in range(7, 15):
        training_step(posterior, optimizer, step)
        training_step(copied, stepping, step)
    assert torch.equal(copied.mean(), posterior.mean())
    assert torch.equal(copied.rows, posterior.rows)
    assert copied.rows.data_ptr() != posterior.rows.data_ptr()


def test_copy_of_the_posterior_alone_is_up_to_date_and_without_optimiser():
    posterior, _ = trained()
    copied = copy.deepcopy(posterior)
    assert copied._row_optimizer is None
    assert type(copied.rows) is nn.Parameter
    assert torch.equal(copied.rows, posterior.rows)


# torch.distributed.checkpoint


def model_and_optimizers(seed):
    torch.manual_seed(seed)
    posterior = make_posterior(seed)
    model = models.LatentModel(posterior, nn.Linear(5, 4), rvi_fast.GaussianLikelihood(4))
    shared = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    return model, [RowAdam(posterior, 0.05), torch.optim.Adam(shared, 0.01)]


def train(model, optimizers, steps):
    x = torch.randn(NUM_DATA, 4, generator=torch.Generator().manual_seed(1))
    for step in steps:
        index = torch.randperm(NUM_DATA, generator=torch.Generator().manual_seed(step))[:8]
        loss = model(index, x[index], seed=step).loss
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoints_hold_the_state_of_both_optimisers(tmp_path, flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizers = model_and_optimizers(0)
    train(model, optimizers, range(7))
    held = get_state_dict(model, optimizers, options=options)
    dcp.save(dict(zip("mo", held, strict=True)), checkpoint_id=tmp_path, no_dist=True)
    fresh, others = model_and_optimizers(1)
    train(fresh, others, range(3))
    values, states = get_state_dict(fresh, others, options=options)
    dcp.load({"m": values, "o": states}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(fresh, others, model_state_dict=values, optim_state_dict=states, options=options)
    assert others[0].num_steps == 7
    for each, its in ((model, optimizers), (fresh, others)):
        train(each, its, range(7, 15))
    assert_bit_equal(fresh.state_dict(), model.state_dict())


# state_dicts


def changed(**entries):
    def change(state):
        state["param_groups"][0].update(entries)

    return change


def counted(step):
    def change(state):
        state["state"][0]["step"] = torch.tensor(step)

    return change


def renamed(state):
    state["state"]["decoder.weight"] = state["state"].pop(0)


def doubled(state):
    state["param_groups"][0]["params"] = [0, 1]
    state["state"][1] = state["state"][0]


def cut(state):
    state["state"][0]["exp_avg_sq"] = state["state"][0]["exp_avg_sq"][:3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (counted(-5), "step: expected an integer from 0"),
        (counted(2**31), "step: expected an integer from 0"),
        (counted(2**33), "step: expected an integer from 0"),
        (counted(math.nan), "step: expected an integer from 0"),
        (counted(1.5), "step: expected an integer from 0"),
        (counted([1, 2]), "step: expected one number"),
        (changed(lr=-1.0), "lr: expected"),
        (changed(lr=math.nan), "lr: expected"),
        (changed(lr=torch.tensor(-1.0)), "lr: expected"),
        (changed(lr="high"), "lr: expected a number"),
        (changed(eps=math.nan), "eps: expected"),
        (changed(eps=-1e-8), "eps: expected"),
        (changed(betas=(0.9, math.nan)), "betas: expected"),
        (changed(betas=(-0.1, 0.9)), "betas: expected"),
        (changed(betas=0.9), "state_dict: cannot be read"),
        (changed(weight_decay=-1.0), "weight_decay: expected"),
        (changed(initial_lr=-1.0), "initial_lr: expected"),
        (renamed, "state: expected entries of 0 alone"),
        (doubled, "params: expected one parameter"),
        (cut, "exp_avg_sq: expected shape"),
        (lambda state: state["state"][0].pop("exp_avg"), "expected an entry 'exp_avg'"),
        (lambda state: state["param_groups"].append({}), "param_groups: expected one group"),
        (lambda state: state.pop("state"), "expected an entry 'state'"),
    ],
)
def test_damaged_state_is_one_value_error_and_changes_nothing(damage, message):
    posterior, optimizer = trained()
    rows, before = posterior.rows.detach().clone(), copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    damage(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert_bit_equal(after["state"][0], before["state"][0])
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(posterior.rows, rows)
    training_step(posterior, optimizer, 8)


def test_visits_beyond_the_steps_taken_are_refused():
    _, optimizer = trained("row")
    for wrong in (-1, 8):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0]["row_step"][3] = wrong
        with pytest.raises(ValueError, match=f"row_step: expected 0 to 7, .* got {wrong}"):
            optimizer.load_state_dict(state)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_edited_in_place_is_loaded_like_a_copy(mode):
    loaded = []
    for take in (copy.deepcopy, lambda state: state):
        posterior, optimizer = trained(mode)
        state = take(optimizer.state_dict())
        state["state"][0] |= {
            "step": torch.tensor(2**20),
            "exp_avg": state["state"][0]["exp_avg"] * 2,
        }
        optimizer.load_state_dict(state)
        training_step(posterior, optimizer, 8)
        assert optimizer.state_dict()["state"][0]["step"] == 2**20 + 1
        loaded.append(posterior.rows.detach().clone())
    assert torch.equal(*loaded)


def test_steps_end_before_their_count_wraps():
    posterior, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = torch.tensor(2**31 - 5)
    optimizer.load_state_dict(state)
    for step in range(4):
        training_step(posterior, optimizer, step)
    with pytest.raises(RuntimeError, match="expected at most 2147483647 steps"):
        training_step(posterior, optimizer, 4)
    assert posterior.mean().isfinite().all()


def test_lazy_takes_the_state_of_sparse_adam_and_goes_on_like_it():
    posterior, peer = make_posterior(), make_posterior()
    sparse_adam = torch.optim.SparseAdam([peer.rows], 0.05)
    for step in range(5):
        training_step(peer, sparse_adam, step)
    posterior.load_state_dict(peer.state_dict())
    with pytest.raises(ValueError, match="mode: expected 'row', got 'lazy'"):
        RowAdam(posterior, mode="row").load_state_dict(sparse_adam.state_dict())
    optimizer = RowAdam(posterior, mode="lazy")
    optimizer.load_state_dict(copy.deepcopy(sparse_adam.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.05
    for step in range(5, 9):
        training_step(posterior, optimizer, step)
        training_step(peer, sparse_adam, step)
    torch.testing.assert_close(posterior.rows, peer.rows)


@pytest.mark.parametrize("mode", MODES)
def test_options_of_a_state_dict_hold_from_the_next_step_on(mode):
    posterior, optimizer = trained(mode)
    optimizer.param_groups[0].update(betas=(0.5, 0.9), eps=1e-3)
    training_step(posterior, optimizer, 7)
    twin = copy.deepcopy(posterior)
    resumed = RowAdam(twin, mode=mode)
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(8, 12):
        training_step(posterior, optimizer, step)
        training_step(twin, resumed, step)
    assert torch.equal(posterior.rows, twin.rows)


def test_raw_state_goes_into_an_optimiser_that_has_come_further():
    """What it has missed since is forgotten, to the last bit."""
    (posterior, optimizer), (other, further) = trained(), trained(steps=12)
    for name, table in further.raw_tables().items():
        table.copy_(optimizer.raw_tables()[name])
    further.load_raw_state({name: t.clone() for name, t in optimizer.raw_state().items()})
    for step in range(7, 10):
        training_step(posterior, optimizer, step)
        training_step(other, further, step)
    assert torch.equal(posterior.rows, other.rows)


def test_hooks_of_state_dicts_are_called_as_torch_calls_them():
    _, optimizer = trained()
    called = []
    optimizer.register_state_dict_pre_hook(lambda o: called.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, state: called.append("after saving"))
    state = copy.deepcopy(optimizer.state_dict())

    def halve(_, state):
        state = copy.deepcopy(state)
        state["param_groups"][0]["lr"] /= 2
        called.append("before loading")
        return state

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("after loading"))
    optimizer.load_state_dict(state)
    assert called == ["before saving", "after saving", "before loading", "after loading"]
    assert optimizer.param_groups[0]["lr"] == 0.025


# what fails leaves the posterior as it was


class Broken(Exception):
    """What a line was made to raise."""


class BreakAt:
    """Within it the n-th line that some functions reach raises."""

    def __init__(self, number, *functions):
        self.left, self.codes = number, {function.__code__ for function in functions}

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def trace(self, frame, event, argument):
        if frame.f_code not in self.codes:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise Broken
        return self.trace


def broken_lines(functions, act):
    """Calls `act` again and again, each time with another line that raises, until none does."""
    for number in range(1, 200):
        try:
            with BreakAt(number, *functions):
                act()
        except Broken:
            yield number
        else:
            return
    raise AssertionError("no end of lines")


def test_a_constructor_that_fails_leaves_the_posterior_to_the_optimiser_before():
    posterior, optimizer = trained()
    twin, peer = trained()
    failures = 0
    for _ in broken_lines([RowAdam.__init__, RowAdam._set_up], lambda: RowAdam(posterior)):
        failures += 1
        assert posterior._row_optimizer is optimizer
    assert failures > 20
    assert posterior._row_optimizer is not optimizer
    assert torch.equal(posterior.mean(), twin.mean())
    assert peer.num_steps == optimizer.num_steps


def test_after_too_little_memory_a_model_reads_saves_and_trains(monkeypatch):
    posterior, optimizer = trained()
    monkeypatch.setattr("rvi_fast.memory.room.free_memory", lambda device: 8)
    with pytest.raises(InsufficientMemory):
        RowAdam(posterior)
    monkeypatch.undo()
    posterior.mean(), posterior.state_dict()
    training_step(posterior, optimizer, 7)


def test_a_fit_that_fails_while_it_sets_up_leaves_a_model_that_fits():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    options = {"epochs": 1, "batch_size": 4, "progress": False}

    def make():
        torch.manual_seed(0)
        return models.rvi(12, 3, latent_dim=2, groups=(3,), hidden=(4,))

    expected = make()
    rvi_fast.fit(expected, x, **options)
    model, initial = make(), make().state_dict()
    functions = [Run.__init__, Run._set_up, InMemory.open, RowTables.open, RowAdam.__init__]
    functions += [Run.start, RowAdam._set_up, SharedAdam.__init__]
    failures = 0
    for _ in broken_lines(functions, lambda: rvi_fast.fit(model, x, **options)):
        failures += 1
        assert_bit_equal(model.state_dict(), initial)
        assert not model.posterior.sparse
        model.reconstruct()
        copy.deepcopy(model)
    assert failures > 50
    assert_bit_equal(model.state_dict(), expected.state_dict())
