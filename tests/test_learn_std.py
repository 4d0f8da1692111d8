"""Standard deviations that are held where they start: no gradient reaches them, whoever steps."""

import copy

import pytest
import torch
from torch import nn

from rvi_fast import RelayPosterior, fit, infer, load, models
from rvi_fast.experiments.experiment import Experiment, _model
from rvi_fast.training.loop.fused_step import fits

N, D, T = 40, 6, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def make(builder=models.rvi, **options):
    options = ({"groups": (3, 5)} if builder is models.rvi else {}) | options
    return builder(
        N, D, latent_dim=T, hidden=(5,), generator=torch.Generator().manual_seed(7), **options
    )


def log_stds(posterior):
    return posterior.rows.detach()[:, posterior.layout.log_std_slice]


def run(model, **options):
    return fit(model, X, **{"epochs": 3, "batch_size": 16, "lr": 0.02, "progress": False} | options)


class Own(nn.Sequential):
    """No chain of layers that is differentiated by hand."""


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
@pytest.mark.parametrize("place", ["device", "host", "files"])
@pytest.mark.parametrize("builder", [models.rvi, models.vad])
def test_training_moves_all_of_a_row_but_them(builder, place, optimizer, tmp_path):
    storage = tmp_path / "rows" if place == "files" else place
    model = make(builder, initial_log_std=-1.5, learn_std=False, storage=storage)
    before = model.posterior.mean().detach().clone()
    run(model, optimizer=optimizer)
    assert (log_stds(model.posterior) == -1.5).all()
    assert (model.posterior.mean() != before).all()
    free = make(builder, initial_log_std=-1.5)
    run(free, optimizer=optimizer)
    assert (log_stds(free.posterior) != -1.5).all()


def test_a_step_by_autograd_is_the_same_step():
    model, other = (make(learn_std=False).double() for _ in range(2))
    other.decoder = Own(*other.decoder)
    # a hook of the posterior's leaves all to autograd
    other.posterior.register_forward_hook(lambda *_: None)
    histories = [run(each, eval_every=0) for each in (model, other)]
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-9)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
    assert (log_stds(other.posterior) == -2).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_the_others_and_zeros(sparse):
    grads = []
    for learn in (True, False):
        posterior = RelayPosterior(
            N, T, groups=(3, 5), sparse=sparse, learn_std=learn,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        z, kl = posterior(torch.tensor([3, 1, 3, 20]), seed=4)
        (z.square().sum() + kl.sum()).backward()
        grad = posterior.rows.grad
        assert grad.is_sparse == sparse
        grads.append((grad.to_dense() if sparse else grad, posterior.relays.grad))
    columns = posterior.layout.log_std_slice
    assert (grads[0][0][[1, 3, 20], columns] != 0).all()
    expected = grads[0][0].clone()
    expected[:, columns] = 0
    torch.testing.assert_close(grads[1][0], expected, rtol=0, atol=0)
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=0, atol=0)


def test_inference_holds_them_too():
    model = make(learn_std=False, initial_log_std=-3.0)
    run(model)
    posterior = infer(model, X[:7], steps=8)
    assert (log_stds(posterior) == -3).all()
    assert not posterior.learn_std
    assert not model.posterior.for_new_data(4).learn_std
    assert not copy.deepcopy(model).posterior.learn_std


def test_six_launches_are_not_taken_for_them():
    """They step whole rows."""
    from rvi_fast.optim import RowAdam
    from rvi_fast.optim.shared_adam import SharedAdam
    from rvi_fast.training.inputs.prepare import Inputs
    from rvi_fast.training.loop.step import make_step

    for learn in (True, False):
        model = make(learn_std=learn)
        others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
        shared = SharedAdam([{"params": others, "lr": 0.01}])
        step = make_step(model, RowAdam(model.posterior), shared)
        assert fits(step, Inputs(X, None)) == learn


def test_files_know_it(tmp_path):
    model = make(learn_std=False)
    assert model.config["learn_std"] is False
    assert "learn_std" not in make().config
    assert "learn_std" not in vars(make().posterior)
    run(model, run_dir=tmp_path)
    assert not load(tmp_path).posterior.learn_std
    with pytest.raises(ValueError, match="learn_std"):
        run(make(), run_dir=tmp_path, resume=True, epochs=4)
    with pytest.raises(TypeError, match="learn_std: expected"):
        make(learn_std=1)


def test_vad_of_its_authors_has_no_kl_divergence_and_a_fixed_spread():
    from rvi_fast.experiments.recipes import RECIPES

    model = _model(Experiment(model="vad-authors", latent_dim=T, hidden=(5,)), (N, D))
    before = model.state_dict()["likelihood.log_scale"].clone()
    run(model, kl_weight=RECIPES["vad-authors"].kl_weight, standardize=False)
    assert (model.posterior.std() == torch.tensor(-7.0).exp()).all()
    assert torch.equal(model.likelihood.log_scale, before)
    assert float(before) == 0
    # the loss is half of the squared error and a constant
    history = run(
        _model(Experiment(model="vad-authors", latent_dim=T, hidden=(5,)), (N, D)),
        kl_weight=0.0, standardize=False, epochs=1,
    )  # fmt: skip
    assert history["loss"] == pytest.approx([-history["log_prob"][0]])
