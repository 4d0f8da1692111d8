import copy
import io
import math
import pickle

import pytest
import torch

from rvi_fast import RelayPosterior, RowLayout, relay_sample
from rvi_fast.optim import RowAdam
from rvi_fast.testing import assert_close, make_tables, training_step

FORMS = ("linear", "cluster", "mixture")


def make_posterior(num_data=10, latent_dim=3, groups=(5, 2), **options):
    """float64, with rows and relays from N(0, 1)."""
    posterior = RelayPosterior(
        num_data, latent_dim, groups=groups, **{"dtype": torch.float64} | options
    )
    with torch.no_grad():
        for parameter, value in zip(
            (posterior.rows, posterior.relays), make_tables(posterior.layout, num_data), strict=True
        ):
            parameter.copy_(value)
    return posterior


def parts(posterior, i):
    """Coefficients of each group, e and r of a row, and the relays of each group, as plain lists."""
    layout, row = posterior.layout, posterior.rows[i].detach()
    return (
        [row[columns] for columns in layout.group_slices],
        row[layout.deviation_slice],
        row[layout.log_std_slice],
        [posterior.relays[some].detach() for some in layout.relay_slices],
    )


def kept(coefficients, count):
    order = sorted(range(len(coefficients)), key=lambda k: (-abs(coefficients[k]), k))
    return sorted(order[:count])


def mean_by_hand(posterior, i, groups=None, deviation=True):
    coefficients, mean, _, relays = parts(posterior, i)
    mean = mean.clone() if deviation else torch.zeros_like(mean)
    for g, count in enumerate(posterior.layout.kept[:groups]):
        chosen = kept(coefficients[g].tolist(), count)
        weights = coefficients[g][chosen]
        if posterior.layout.form == "mixture":
            weights = weights.exp() / weights.exp().sum()
        mean += weights @ relays[g][chosen]
    return mean


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [None, 0, 1, 2])
@pytest.mark.parametrize("deviation", [True, False])
def test_mean_equals_its_formula(form, groups, deviation):
    posterior = make_posterior(form=form)
    got = posterior.mean(torch.tensor([4, 9, 4]), groups=groups, deviation=deviation)
    expected = [mean_by_hand(posterior, i, groups, deviation) for i in (4, 9, 4)]
    assert_close([got], [torch.stack(expected)])


def test_reads_of_rows_equal_their_formulas():
    posterior = make_posterior()
    coefficients, _, log_std, _ = parts(posterior, 7)
    index = torch.tensor([7], dtype=torch.int32)
    assert_close([posterior.std(index)[0]], [log_std.exp()])
    assert torch.equal(posterior.coefficients(index)[0], torch.cat(coefficients))
    for g, chosen in enumerate(posterior.selected(index)):
        assert chosen.tolist() == [kept(coefficients[g].tolist(), posterior.layout.kept[g])]
    assert_close([posterior.mean_row()], [posterior.rows.detach().mean(0)])


def test_standard_deviations_are_clamped_at_both_ends():
    posterior = RelayPosterior(1, 3, groups=(), dtype=torch.float64)
    with torch.no_grad():
        posterior.rows[0, posterior.layout.log_std_slice] = torch.tensor(
            [-50.0, 0.0, 50.0]
        ).double()
    expected = [[math.exp(-30), 1.0, math.exp(30)]]
    torch.testing.assert_close(
        posterior.std(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0
    )


def test_reads_of_all_rows_equal_reads_one_by_one(monkeypatch):
    monkeypatch.setattr("rvi_fast.posteriors.rows._CHUNK", 4)
    posterior = make_posterior()
    index = torch.arange(10)
    for read in (posterior.mean, posterior.std, posterior.coefficients):
        assert_close([read()], [torch.cat([read(i) for i in index[:, None]])])
    for everything, some in zip(posterior.selected(), posterior.selected(index), strict=True):
        assert torch.equal(everything, some)
    assert posterior.mean(index[:0]).shape == posterior.std(index[:0]).shape == (0, 3)
    assert posterior.selected(index[:0])[0].shape == (0, 3)


def test_distribution_agrees_with_samples_and_kl():
    posterior = make_posterior()
    index = torch.tensor([4, 9])
    z, kl = posterior(index, num_samples=20_000, seed=1)
    distribution = posterior.distribution(index)
    assert (distribution.batch_shape, distribution.event_shape) == ((2,), (3,))
    standard_error = distribution.stddev / math.sqrt(len(z))
    assert ((z.mean(0) - distribution.mean).abs() < 5 * standard_error).all()
    assert (z.std(0) / distribution.stddev - 1).abs().max() < 0.03
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2, 3), 1.0), 1)
    assert_close([kl], [torch.distributions.kl_divergence(distribution, prior)])


def test_forward_takes_noise_seed_or_generator():
    posterior = make_posterior()
    index = torch.tensor([4, 9])
    noise = torch.randn(2, 3, dtype=torch.float64)
    expected = posterior.mean(index) + posterior.std(index) * noise
    assert_close([posterior(index, noise=noise).z], [expected])
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    draws = [posterior(index, generator=generator).z for generator in generators]
    assert torch.equal(*draws)
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(posterior(index).z)
    assert torch.equal(draws[2], draws[3])
    assert not torch.equal(draws[3], draws[4])
    assert posterior(index, num_samples=1).z.shape == (1, 2, 3)


def test_rows_of_a_part_draw_the_noise_of_the_whole():
    whole, index = make_posterior(), torch.tensor([7, 4, 7], dtype=torch.int32)
    expected = whole(index, seed=5).z
    part = make_posterior(num_data=6)
    part.rows, part.relays = torch.nn.Parameter(whole.rows[4:].clone()), whole.relays
    for keys in ({"noise_index": index}, {"noise_index": index.long()}):
        assert torch.equal(part(index - 4, seed=5, **keys).z, expected)
    assert not torch.equal(part(index - 4, seed=5).z, expected)
    part.first_row = 4
    assert torch.equal(part(index - 4, seed=5).z, expected)
    assert torch.equal(copy.deepcopy(part)(index - 4, seed=5).z, expected)
    part.row_numbers = torch.tensor([4, 5, 6, 7, 8, 9])
    assert torch.equal(part(index - 4, seed=5).z, expected)
    part.first_row, part.row_numbers = 2**40, None
    assert not torch.equal(part(index - 4, seed=5).z, expected)
    for numbers in (None, torch.arange(6)):
        part.row_numbers = numbers
        with pytest.raises(IndexError, match=r"index: .* 0 to 5, got 6"):
            part(torch.tensor([6]))
        assert part(index[:0]).z.shape == (0, 3)


def test_fresh_parameters_follow_the_documented_law():
    torch.manual_seed(0)
    posterior = RelayPosterior(4000, 5, groups=(6,), top=2).requires_grad_(False)
    layout = posterior.layout
    assert posterior.coefficients().std() == pytest.approx(0.01, rel=0.02)
    assert posterior.rows[:, layout.deviation_slice].std() == pytest.approx(0.01, rel=0.02)
    assert (posterior.rows[:, layout.log_std_slice] == -2).all()
    assert not posterior.rows[:, [6, 7, 13, 14, 15, 21, 22, 23]].any()  # the padding
    assert posterior.relays.std() == pytest.approx(1.0, rel=0.3)


def test_log_standard_deviations_start_where_they_are_told_and_move_no_other_draw():
    made = [
        RelayPosterior(9, 5, groups=(6,), generator=torch.Generator().manual_seed(0), **options)
        for options in ({}, {"initial_log_std": -1})
    ]
    usual, wide = [posterior.requires_grad_(False) for posterior in made]
    assert torch.equal(wide.std(), torch.full((9, 5), -1.0).exp())
    assert torch.equal(wide.mean(), usual.mean())
    assert torch.equal(wide.relays, usual.relays)
    for later in (wide.for_new_data(3), copy.deepcopy(wide), wide.over(wide.rows)):
        later.reset_parameters()
        assert torch.equal(later.std()[0], wide.std()[0])
    wide.initial_log_std = -3.0
    assert wide.reset_parameters() is None
    assert torch.equal(wide.std(), torch.full((9, 5), -3.0).exp())


def test_gradient_is_sparse_on_request_and_padding_gets_none():
    for sparse in (True, False):
        posterior = make_posterior(sparse=sparse)
        posterior(torch.tensor([4, 4])).kl.sum().backward()
        assert posterior.rows.grad.is_sparse == sparse
        touched = posterior.rows.grad.to_dense()
        assert touched.any(-1).nonzero().flatten().tolist() == [4]
        assert not touched[:, [5, 6, 7, 10, 11, 15, 19]].any()


def test_new_data_gets_fresh_rows_and_the_same_frozen_relays():
    posterior = make_posterior(form="mixture", top=(2, 1), sparse=True)
    fresh = posterior.for_new_data(4)
    assert (fresh.layout, fresh.sparse, fresh.num_data) == (posterior.layout, True, 4)
    assert torch.equal(fresh.relays, posterior.relays)
    assert not fresh.relays.requires_grad
    fresh(torch.tensor([3])).kl.sum().backward()
    assert fresh.relays.grad is None
    posterior.relays.data.zero_()
    assert fresh.relays.all()


def test_copies_and_pickles_hold_rows_that_are_up_to_date():
    copies = (
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: loaded(make_posterior(), saved(module)),
    )
    for make_copy in copies:
        posterior, twin = make_posterior(sparse=True), make_posterior(sparse=True)
        for module in (posterior, twin):
            optimizer = RowAdam(module, 0.1)
            for step in range(5):
                training_step(module, optimizer, step)
        made = make_copy(posterior)
        twin.mean()  # brings its rows up to date
        assert torch.equal(made.rows, twin.rows)
        assert made._row_optimizer is None
        made.rows.data.zero_()
        assert posterior.rows.any()


def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded(module, state):
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_data": 60}, "rows: the checkpoint has 60 rows, the module has 10"),
        ({"groups": (2, 5)}, r"layout: the checkpoint's .* is \[3, 0, 2, 5, 1, 3\], the module's"),
        ({"form": "mixture"}, r"layout: the checkpoint's .* is \[3, 2, 5, 2, 3, 1\], the module's"),
        ({"top": 2}, r"layout: the checkpoint's .* is \[3, 0, 5, 2, 2, 2\], the module's"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_checkpoint_of_another_posterior_is_refused_in_words(options, message, strict):
    posterior = make_posterior()
    before = posterior.rows.detach().clone()
    with pytest.raises(RuntimeError, match=message):
        posterior.load_state_dict(saved(make_posterior(**options)), strict=strict)
    model = torch.nn.ModuleDict({"posterior": posterior})
    other = torch.nn.ModuleDict({"posterior": make_posterior(**options)})
    with pytest.raises(RuntimeError, match="posterior." + message):
        model.load_state_dict(other.state_dict(), strict=strict)
    assert torch.equal(posterior.rows, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_module_works_after_a_change_of_dtype(dtype):
    posterior = make_posterior(dtype=torch.float32, sparse=True)
    expected = posterior(torch.tensor([4, 9]), seed=1)
    z, kl = posterior.to(dtype)(torch.tensor([4, 9]), seed=1)
    assert (z.dtype, kl.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    assert_close([z.float(), kl.float()], expected, rtol=0.03)
    (z.sum() + kl.sum()).backward()
    assert posterior.rows.grad.dtype == posterior.relays.grad.dtype == dtype


def test_autocast_leaves_tables_and_samples_in_their_dtype():
    posterior = make_posterior(dtype=torch.float32)
    expected = posterior(torch.tensor([4, 9]), seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample = posterior(torch.tensor([4, 9]), seed=1)
        sample.kl.sum().backward()
    assert sample.z.dtype == posterior.rows.grad.dtype == torch.float32
    assert torch.equal(sample.z, expected.z)


def test_padding_never_influences_a_sample():
    posterior = make_posterior()
    expected = posterior(torch.arange(10), seed=1)
    posterior.rows.data[:, [5, 6, 7, 10, 11, 15, 19]] = math.nan
    assert_close(posterior(torch.arange(10), seed=1), expected)


def test_text_names_what_a_reader_wants_to_know():
    text = "num_data=10, latent_dim=3, groups=(5, 2), kept=(3, 1), form='linear', sparse=True"
    assert repr(make_posterior(sparse=True)) == f"RelayPosterior({text})"
    assert repr(make_posterior(groups=())) == "RelayPosterior(num_data=10, latent_dim=3, groups=())"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: RelayPosterior(0, 3), ValueError, "num_data: expected an integer >= 1, got 0"),
        (lambda p: RelayPosterior(2.5, 3), ValueError, "num_data: .*, got 2.5"),
        (lambda p: RelayPosterior(9, 0), ValueError, "latent_dim: expected an integer >= 1, got 0"),
        (
            lambda p: RelayPosterior(9, 3, initial_log_std=31),
            ValueError,
            "initial_log_std: expected a number from -30 to 30, got 31",
        ),
        (
            lambda p: RelayPosterior(9, 3, initial_log_std="-1"),
            TypeError,
            "initial_log_std: .*'-1'",
        ),
        (lambda p: RelayPosterior(9, 3, groups=None), TypeError, "groups: expected"),
        (lambda p: RelayPosterior(9, 3, dtype=torch.int64), (TypeError, RuntimeError), "floating"),
        (lambda p: p(torch.tensor([10])), IndexError, "index: .* from 0 to 9, got 10"),
        (lambda p: p(3), TypeError, "index: expected a torch.Tensor, got int"),
        (lambda p: p.mean(torch.tensor([-1])), IndexError, "index: .* from 0 to 9, got -1"),
        (lambda p: p.std(torch.tensor([-1])), IndexError, "index: .* from 0 to 9, got -1"),
        (lambda p: p.coefficients(torch.tensor([10])), IndexError, "index: .* 0 to 9, got 10"),
        (lambda p: p.selected(torch.tensor([10])), IndexError, "index: .* 0 to 9, got 10"),
        (lambda p: p.mean(torch.tensor([10]), deviation=False), IndexError, "index: .*, got 10"),
        (lambda p: p.mean(groups=3), ValueError, "groups: expected 0 to 2, got 3"),
        (lambda p: p.for_new_data(0), ValueError, "num_data: expected an integer >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make_posterior())


def test_forward_equals_the_functional_form():
    posterior = make_posterior()
    layout = RowLayout.resolve(3, (5, 2))
    index = torch.tensor([1, 1])
    expected = relay_sample(posterior.rows, posterior.relays, index, 4, layout=layout)
    assert_close(posterior(index, seed=4), expected)


def test_meta_construction_draws_nothing():
    posterior = RelayPosterior(10**12, 4, groups=(3,), device="meta")
    assert posterior.rows.shape == (10**12, 12)


def test_posteriors_around_rows_have_a_table_of_their_size():
    posterior = RelayPosterior(20, 3, groups=(4,), shard=range(5, 10))
    rows = torch.zeros(7, posterior.layout.width)
    own = RelayPosterior.from_rows(rows, posterior.relays, posterior.layout)
    assert own.rows.data_ptr() == rows.data_ptr()
    assert own.relays is posterior.relays
    for made in (own, posterior.over(rows), posterior.for_new_data(7)):
        assert (made.num_data, made.table_size, made.first_row, made.sharded) == (7, 7, 0, False)
        assert list(made.state_dict()) == list(posterior.state_dict())
    with pytest.raises(
        ValueError, match=r"rows: expected shape \[N, 12\] with N >= 1, got \[7, 3\]"
    ):
        RelayPosterior.from_rows(rows[:, :3], posterior.relays, posterior.layout)
