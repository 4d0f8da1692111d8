import pytest
import torch
from torch.optim import Adam, AdamW, SparseAdam

from rvi_fast import RelayPosterior, reference, testing
from rvi_fast.ops import ops
from rvi_fast.optim import MODES, RowAdam
from rvi_fast.testing import assert_close, cotangents, training_step

NUM_DATA = 40


class TestContract(testing.RowAdamContract):
    implementations = testing.installed()


def make_posterior(num_data=NUM_DATA, seed=0, **options):
    torch.manual_seed(seed)
    return RelayPosterior(num_data, 5, groups=(6,), **{"sparse": True} | options)


def batches(posterior, steps):
    """Random batches and gradients; the last four rows stay away from step 3 to the last but two."""
    generator = torch.Generator().manual_seed(1)
    num_data, width = posterior.rows.shape
    for step in range(steps):
        index = torch.randperm(num_data - 4, generator=generator)[:6]
        if step < 3 or step >= steps - 2:
            index[:4] = torch.arange(num_data - 4, num_data)
        yield index, torch.randn(6, width, generator=generator)


def sparse(index, values, posterior):
    values = values.to(posterior.rows.dtype)
    return torch.sparse_coo_tensor(
        index[None], values, posterior.rows.shape, check_invariants=False
    )


def race(options, *, peer=Adam, steps=300, change=None, between=None, dtype=torch.float32):
    """Rows after RowAdam, float64 `peer` and `peer` in `dtype`, all three given the same gradients."""
    posterior = make_posterior(dtype=dtype)
    optimizer = RowAdam(posterior, **options)
    tables = [posterior.rows.detach().to(kind).clone() for kind in (torch.float64, dtype)]
    peers = [peer([torch.nn.Parameter(table)], **options) for table in tables]
    for step, (index, values) in enumerate(batches(posterior, steps)):
        if change is not None:
            for racer in (optimizer, *peers):
                change(step, racer.param_groups[0])
        posterior.rows.grad = sparse(index, values, posterior)
        optimizer.step()
        for racer in peers:
            (table,) = racer.param_groups[0]["params"]
            table.grad = posterior.rows.grad.to_dense().to(table.dtype)
            racer.step()
        if between is not None:
            between(posterior, step)
    optimizer.flush()
    return posterior.rows.detach(), *tables


def assert_no_worse(got, exact, yardstick):
    """Errors against float64 at most torch's own; the slack is for which rounding came out lucky."""
    errors = [(table.double() - exact).abs() for table in (got, yardstick)]
    largest, root_mean_square = (
        [float(measure(error)) for error in errors]
        for measure in (torch.max, lambda error: error.square().mean().sqrt())
    )
    assert largest[0] <= 1.5 * largest[1]
    assert root_mean_square[0] <= 1.05 * root_mean_square[1]


def decay_lr(step, group):
    group["lr"] = 0.01 / (1 + step / 50)


def change_everything(step, group):
    if step % 70 == 0:
        group["betas"] = ((0.9, 0.999), (0.5, 0.99))[step // 70 % 2]
        group["eps"] = (1e-8, 1e-10)[step // 70 % 2]


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ({"lr": 1e-3}, {}),
        ({"lr": 0.1}, {}),
        ({"lr": 1e-3, "betas": (0.0, 0.999)}, {}),
        ({"lr": 1e-2, "betas": (0.5, 0.999)}, {}),
        ({"lr": 1e-2, "betas": (0.99, 0.999)}, {}),
        ({"lr": 1e-2, "betas": (0.9, 0.99)}, {}),
        ({"lr": 1e-3, "weight_decay": 0.1}, {"peer": AdamW}),
        ({"lr": 0.1, "weight_decay": 0.5}, {"peer": AdamW}),
        ({"lr": 1e-2}, {"change": decay_lr}),
        ({"lr": 1e-3}, {"change": change_everything}),
        ({"lr": 1e-3}, {"steps": 1100}),
    ],
    # processes that share the tests know them by name: no address of a function
    ids=lambda options: str({k: getattr(v, "__name__", v) for k, v in options.items()}),
)
def test_dense_mode_is_as_accurate_as_adam(options, rest):
    assert_no_worse(*race(options, **rest))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.999), (0.9, 0.9), (0.5, 0.5)])
def test_closed_form_equals_adam_step_by_step(betas):
    got, exact, _ = race({"lr": 0.1, "betas": betas, "eps": 1e-12}, dtype=torch.float64)
    assert_close([got], [exact], rtol=1e-7)


@pytest.mark.parametrize("betas", [(0.9, 0.5), (0.9, 0.812), (0.9, 0.85), (0.5, 0.3)])
def test_betas_without_a_closed_form_are_refused(betas):
    # a resting row moves by m / sqrt(v) ~ (b1 / sqrt(b2))^j until sqrt(v) is at eps, where the closed
    # form fails: for what is left then, the share (eps / |g|)^(2 log b1 / log b2 - 1) of the whole.
    # For b1 <= b2 that is eps / |g| at most.
    with pytest.raises(ValueError, match=rf"betas: .*{betas[0]}, {betas[1]}"):
        RowAdam(make_posterior(), betas=betas)


def test_reading_in_between_changes_rounding_at_most():
    def read(posterior, step):
        if step % 9 == 0:
            posterior.mean(), posterior.std(torch.tensor([39, 1])), posterior.state_dict()
        with torch.inference_mode(step % 2 == 0):
            posterior(torch.tensor([step % NUM_DATA]))

    assert_no_worse(*race({"lr": 1e-3}, between=read))


@pytest.mark.parametrize("mode", MODES)
def test_training_equals_the_peer_on_the_whole_table(mode):
    posterior, twin = (
        make_posterior(dtype=torch.float64, sparse=s) for s in (True, mode == "lazy")
    )
    optimizer = RowAdam(posterior, 0.05, mode=mode)
    peers = [{"dense": Adam, "lazy": SparseAdam, "row": Adam}[mode]([twin.rows], 0.05)]
    if mode == "row":  # an Adam for each row, which steps when the row is visited
        table = [torch.nn.Parameter(row.clone()) for row in twin.rows.detach()]
        peers = [Adam([row], 0.05) for row in table]
    for step in range(60):
        training_step(posterior, optimizer, step)
        index = torch.tensor([step, 3 * step, step]) % NUM_DATA
        twin.zero_grad()
        sample = twin(index, seed=step)
        torch.autograd.backward(sample, cotangents(sample))
        if mode == "row":
            for row in index.unique():
                table[row].grad = twin.rows.grad[row]
                peers[row].step()
                twin.rows.data[row] = table[row].detach()
        else:
            peers[0].step()
    optimizer.flush()
    assert_close([posterior.rows], [twin.rows], rtol=1e-7 if mode == "dense" else 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_dense_and_compiled_gradients_equal_sparse_ones(mode):
    results = []
    for is_sparse, is_compiled in ((True, False), (False, False), (True, True), (False, True)):
        posterior = make_posterior(dtype=torch.float64, sparse=is_sparse)
        optimizer = RowAdam(posterior, 0.05, mode=mode)
        call = torch.compile(posterior, fullgraph=True, backend="aot_eager")
        call = call if is_compiled else posterior
        for step in range(5):
            sample = call(torch.arange(2 + step % 3) * (step + 1), seed=step)
            torch.autograd.backward(sample, cotangents(sample))
            optimizer.step()
            optimizer.zero_grad()
        optimizer.flush()
        results.append(posterior.rows)
    for other in results[1:]:
        assert_close([other], results[:1], rtol=1e-9)


def test_two_forwards_before_a_backward_give_the_summed_gradient():
    results = []
    for parts in ([[0, 1, 7]], [[0, 1], [7]]):
        posterior = make_posterior(dtype=torch.float64)
        optimizer = RowAdam(posterior, 0.05)
        for step in range(4):
            training_step(posterior, optimizer, step)
        sum(posterior(torch.tensor(part), seed=9).kl.sum() for part in parts).backward()
        optimizer.step()
        results.append(posterior.mean())
    assert_close(results[:1], results[1:])


@pytest.mark.parametrize("gap", [10, 820, 860, 2000])
def test_moments_never_become_denormal(gap):
    contract, case = testing.RowAdamContract(), testing.RowAdamCase(63, 63, 7)
    inputs = contract.inputs("row_adam_catch_up", case, torch.float32)
    inputs["clock"][0] += gap
    inputs["history"] = torch.zeros(gap + 20, reference.HISTORY_COLUMNS, dtype=torch.float64)
    for implementation in testing.installed():
        moment = contract.call(implementation, "row_adam_catch_up", inputs)["exp_avg"].abs()
        assert ((moment == 0) | (moment >= torch.finfo(torch.float32).tiny)).all()
        assert bool(moment[inputs["index"]].any()) == (gap < 860)


def test_both_moments_of_a_resting_row_fall_from_the_least_number_to_zero():
    contract, case = testing.RowAdamContract(), testing.RowAdamCase(63, 63, 7)
    inputs = contract.inputs("row_adam_catch_up", case, torch.float32)
    inputs["clock"][0] += 10
    inputs["history"] = inputs["history"].new_zeros(30, inputs["history"].shape[1])
    for name in ("exp_avg", "exp_avg_sq"):
        inputs[name].fill_(torch.finfo(torch.float32).tiny)
    for implementation in testing.installed():
        written = contract.call(implementation, "row_adam_catch_up", inputs)
        for name in ("exp_avg", "exp_avg_sq"):
            assert not written[name][inputs["index"]].any(), name


@pytest.mark.parametrize("function", testing.RowAdamContract.functions)
def test_registration_passes_opcheck(function):
    contract = testing.RowAdamContract()
    for case in contract.cases[1:3]:
        torch.library.opcheck(getattr(ops, function), contract.arguments(function, case))
