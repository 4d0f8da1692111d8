import itertools
import math
import pickle

import pytest

from rvi_fast import RowLayout
from rvi_fast.layout import ALIGNMENT, FORMS

SIZES = [(), (1,), (4,), (25, 50, 100), (3, 33, 64)]


@pytest.mark.parametrize("groups", SIZES)
@pytest.mark.parametrize("latent_dim", [1, 4, 7, 64])
def test_parts_are_aligned_and_disjoint_and_in_order(groups, latent_dim):
    layout = RowLayout.resolve(latent_dim, groups)
    parts = [*layout.group_slices, layout.deviation_slice, layout.log_std_slice]
    sizes = [part.stop - part.start for part in parts]
    assert sizes == [*groups, latent_dim, latent_dim]
    assert all(part.start % ALIGNMENT == 0 for part in parts)
    for before, after in itertools.pairwise([*parts, slice(layout.width, None)]):
        assert 0 <= after.start - before.stop < ALIGNMENT
    assert parts[0].start == 0
    assert [part.start for part in parts[:-2]] == list(layout.group_offsets)


@pytest.mark.parametrize("groups", SIZES)
def test_relays_of_the_groups_follow_each_other(groups):
    layout = RowLayout.resolve(7, groups)
    covered = [k for part in layout.relay_slices for k in range(part.start, part.stop)]
    assert covered == list(range(layout.num_relays)) == list(range(sum(groups)))
    assert layout.word_counts == tuple(math.ceil(size / 32) for size in groups)


@pytest.mark.parametrize(
    ("top", "kept"),
    [
        (0.5, (3, 5, 1)),  # half of 5 is rounded up
        (1.0, (5, 10, 1)),
        (0.01, (1, 1, 1)),
        (1, (1, 1, 1)),
        ((2, 0.3, 1), (2, 3, 1)),
        ([5, 10, 1.0], (5, 10, 1)),
    ],
)
def test_top_is_a_share_or_a_count_or_one_per_group(top, kept):
    assert RowLayout.resolve(3, (5, 10, 1), top).kept == kept


def test_cluster_form_keeps_one_whatever_top_says():
    assert RowLayout.resolve(3, (5, 10), 0.9, "cluster").kept == (1, 1)


def test_layouts_are_values_that_hash_and_pickle():
    one, other = (RowLayout.resolve(3, [5, 10]) for _ in range(2))
    assert one == other == pickle.loads(pickle.dumps(one))
    assert len({one, other, RowLayout.resolve(3, [5, 10], form="mixture")}) == 2
    assert FORMS == ("linear", "cluster", "mixture")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, (5,)), ValueError, "latent_dim: expected an integer >= 1, got 0"),
        ((2.0, (5,)), ValueError, r"latent_dim: .*, got 2\.0"),
        ((True, (5,)), ValueError, "latent_dim: .*, got True"),
        ((3, 5), TypeError, "groups: expected a sequence of integers, got 5"),
        ((3, None), TypeError, "groups: expected a sequence of integers, got None"),
        ((3, "55"), TypeError, "groups: expected a sequence of integers, got '55'"),
        ((3, (5, 0)), ValueError, r"groups: expected integers >= 1, got 0 in \(5, 0\)"),
        ((3, (5, -1)), ValueError, "groups: expected integers >= 1, got -1"),
        ((3, (5, 2.5)), ValueError, r"groups: expected integers >= 1, got 2\.5"),
        ((3, (5,), 0), ValueError, "top: expected a count from 1 to the group's 5 relays, got 0"),
        ((3, (5,), 6), ValueError, "top: expected a count from 1 to the group's 5 relays, got 6"),
        ((3, (5,), 0.0), ValueError, r"top: expected a share in \(0, 1\] or a count .*, got 0\.0"),
        ((3, (5,), 1.5), ValueError, r"top: expected a share in \(0, 1\] or a count .*, got 1\.5"),
        ((3, (5,), math.nan), ValueError, "top: expected a share .*, got nan"),
        ((3, (5,), "all"), TypeError, "top: expected a float, an int, or one .*, got 'all'"),
        ((3, (5,), True), TypeError, "top: expected a float, an int, or one .*, got True"),
        ((3, (5, 6), (1,)), ValueError, r"top: expected one entry per group \(2\), got 1"),
        ((3, (), 2.5), ValueError, r"top: expected a share .*, got 2\.5"),
        ((3, (5,), 0.5, "Linear"), ValueError, "form: expected one of linear, .*, got 'Linear'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        RowLayout.resolve(*arguments)


def test_count_does_not_matter_where_there_are_no_groups():
    assert RowLayout.resolve(3, (), 3).kept == ()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, (4, 5), (2, 3), "sparsemax"), ValueError, "form: expected one of .*, got 'sparsemax'"),
        ((3, (4, 5), (-1, 2), "linear"), ValueError, "kept: expected integers >= 1, got -1"),
        ((3, (4, 5), (5, 2)), ValueError, "kept: expected counts from 1 to 4 .*, got 5"),
        ((3, (4, 5), (2,)), ValueError, r"kept: expected one entry per group \(2\), got 1"),
        ((3, (4, 5), (2, 1), "cluster"), ValueError, "kept: expected counts from 1 to 1 .*, got 2"),
        ((3, (4, 0), (2, 1)), ValueError, "groups: expected integers >= 1, got 0"),
        ((3, 4, (2,)), TypeError, "groups: expected a sequence of integers, got 4"),
        ((3, (4,), 2), TypeError, "kept: expected a sequence of integers, got 2"),
        ((0, (4,), (2,)), ValueError, "latent_dim: expected an integer >= 1, got 0"),
    ],
)
def test_a_layout_made_by_hand_is_held_to_the_same_rules(arguments, error, message):
    with pytest.raises(error, match=message):
        RowLayout(*arguments)


def test_lists_make_the_layout_that_tuples_make():
    layouts = {RowLayout(3, [4, 5], [2, 3]), RowLayout(3, (4, 5), (2, 3))}
    assert len(layouts) == 1
