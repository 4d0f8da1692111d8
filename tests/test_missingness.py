import numpy as np
import pytest

from rvi_fast.data import mcar, missing_boxes


def test_the_mask_depends_on_nothing_but_shape_rate_and_seed():
    mask = mcar((1500, 1000), 0.3, seed=5)
    np.testing.assert_array_equal(mask, mcar((1500, 1000), 0.3, seed=5))
    assert (mask != mcar((1500, 1000), 0.3, seed=6)).any()
    # pinned: results of a paper must not move with the library's version
    assert mcar((2, 4), 0.5, seed=1).tolist() == [[False, False, False, True], [False] * 4]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_entries_go_missing_independently_at_the_rate(rate):
    missing = ~mcar((2000, 1000), rate)
    assert missing.dtype == bool
    bound = 5 * np.sqrt(rate * (1 - rate))  # five standard errors
    assert abs(missing.mean() - rate) <= bound / np.sqrt(missing.size)
    assert np.abs(missing.mean(axis=0) - rate).max() <= bound / np.sqrt(2000)
    for pair in (missing[1:] & missing[:-1], missing[:, 1:] & missing[:, :-1]):
        assert abs(pair.mean() - rate**2) <= 5 * rate / np.sqrt(pair.size)


def test_a_higher_rate_only_adds_missing_entries():
    assert (mcar(10_000, 0.3) >= mcar(10_000, 0.6)).all()


@pytest.mark.parametrize("shape", [0, 7, (0, 3), (2, 3, 4), ()])
def test_a_mask_has_any_shape(shape):
    assert mcar(shape, 0.5).shape == np.empty(shape).shape


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match="rate: expected 0 <= rate < 1"):
        mcar((2, 2), rate)


def laid(num_images, shape, count, **options):
    return missing_boxes(num_images, shape, count, **options).reshape(num_images, *shape)


def test_one_box_is_a_whole_square_and_every_position_occurs():
    mask = laid(4000, (7, 9), 1)
    assert ((~mask).sum((1, 2)) == 16).all()
    corners = {tuple(np.argwhere(~image)[0]) for image in mask}
    assert corners == {(row, column) for row in range(4) for column in range(6)}
    for image in mask[:50]:
        row, column = np.argwhere(~image)[0]
        assert not image[row : row + 4, column : column + 4].any()
    # each of 24 positions 4000 / 24 = 167 times, standard deviation 13
    first = [np.argwhere(~image)[0] for image in mask]
    counts = np.unique([9 * row + column for row, column in first], return_counts=True)[1]
    assert (np.abs(counts - 4000 / 24) < 60).all()


def test_boxes_depend_on_seed_image_and_number_alone():
    shape = (28, 28)
    mask = laid(5000, shape, 10, seed=3)
    np.testing.assert_array_equal(mask, laid(5000, shape, 10, seed=3))
    np.testing.assert_array_equal(mask[:7], laid(7, shape, 10, seed=3))
    assert not (laid(5000, shape, 20, seed=3) & ~mask).any()
    assert (mask != laid(5000, shape, 10, seed=4)).any()
    assert len(np.unique(mask.reshape(5000, -1), axis=0)) == 5000


def test_overlapping_boxes_miss_what_is_expected():
    # a pixel is covered by a box with probability (positions that cover it) / 25^2
    cover = np.minimum(np.minimum(np.arange(28), np.arange(28)[::-1]) + 1, 4)
    for count in (10, 20):
        expected = (1 - np.outer(cover, cover) / 25**2) ** count
        observed = laid(4000, (28, 28), count).mean(0)
        assert np.abs(observed - expected).max() < 5 * np.sqrt(0.25 / 4000)


def test_no_box_and_no_image_hide_nothing():
    assert missing_boxes(3, (4, 4), 0).all()
    assert missing_boxes(0, (4, 4), 2).shape == (0, 16)
    assert not missing_boxes(2, (4, 4), 1).any()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1, (4, 4), 1), "num_images"), ((1, (4, 4), -1), "count"), ((1, (3, 9), 1), "size"),
     ((1, (4, 4), 1.5), "count")],
)  # fmt: skip
def test_boxes_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        missing_boxes(*arguments)
