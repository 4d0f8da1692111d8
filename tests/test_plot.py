"""Pictures: what they show is what arrays and models say, and pyplot knows nothing of them."""

import sys

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import History, fit, impute, infer, models, plot
from rvi_fast._figures import PALETTE, _spread, columns_for, name_ends, new_figure, style_of
from rvi_fast.plot.tables import covered

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pandas = pytest.importorskip("pandas", reason="pandas is not installed")

N, D = 80, 6
FULL = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)) @ torch.linspace(
    -2, 2, 2 * D
).reshape(2, D)
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.7
X = FULL.masked_fill(~MASK, torch.nan)
NAMES = ["age", "height", "weight", "pulse", "score", "income"]
FRAME = pandas.DataFrame(X.numpy(), columns=NAMES)


@pytest.fixture(scope="module")
def trained():
    model = models.rvi(N, D, latent_dim=3, hidden=(8,), groups=(4, 6))
    history = fit(model, FRAME, epochs=20, lr=0.02, held_out=0.1, progress=False)
    return model, history


def written(figure, tmp_path):
    """The figure drawn: what cannot be drawn fails here, not when it is made."""
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
    return figure


def texts(figure):
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


PICTURES = {
    "history": lambda model, history: history.plot(),
    "reconstructions": lambda model, history: plot.reconstructions(model, FRAME),
    "reconstructed images": lambda model, history: plot.reconstructions(
        model, X, rows=[3, 5], image_shape=(2, 3)
    ),
    "relays": lambda model, history: plot.relays(model),
    "images of relays": lambda model, history: plot.relays(model, image_shape=(2, 3)),
    "latents": lambda model, history: plot.latents(model),
    "latents with kinds": lambda model, history: plot.latents(
        model, labels=["a", "b"] * (N // 2), dimensions=(2, 0)
    ),
    "latents with numbers": lambda model, history: plot.latents(model, labels=np.arange(N)),
    "missingness": lambda model, history: plot.missingness(FRAME),
    "missingness of a mask": lambda model, history: plot.missingness(FULL, mask=MASK),
    "imputations": lambda model, history: plot.imputations(FRAME, impute(model, FRAME)),
    "draws": lambda model, history: plot.imputations(X, impute(model, X, num_draws=3)),
    "imputed images": lambda model, history: plot.imputations(
        X, impute(model, X), image_shape=(2, 3)
    ),
    "coverage": lambda model, history: plot.coverage(
        FULL, impute(model, X, num_draws=20), mask=~MASK
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_a_figure_that_pyplot_does_not_know(name, trained, tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), dict(plt.rcParams)
    modes = [part.training for part in trained[0].modules()]
    written(PICTURES[name](*trained), tmp_path)
    assert (plt.get_fignums(), dict(plt.rcParams)) == before
    assert [part.training for part in trained[0].modules()] == modes


@pytest.mark.parametrize("name", PICTURES)
def test_no_legend_lies_over_what_is_drawn(name, trained, tmp_path):
    figure = written(PICTURES[name](*trained), tmp_path)
    renderer = figure.canvas.get_renderer()
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    for legend in legends:
        box = legend.get_window_extent(renderer)
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent(renderer)), name


def test_pictures_of_a_frame_have_its_names(trained):
    model, _ = trained
    assert set(NAMES) <= set(texts(plot.missingness(FRAME)))
    assert set(NAMES) <= set(texts(plot.reconstructions(model, FRAME)))
    assert set(NAMES) <= set(texts(plot.relays(model)))
    shown = texts(plot.imputations(FRAME, impute(model, FRAME), columns=2))
    most = FRAME.isna().mean().nlargest(2)
    assert {f"{name}, {share:.0%} missing" for name, share in most.items()} <= set(shown)


def test_bars_are_the_shares_that_are_missing():
    bars, pattern = plot.missingness(FRAME).axes
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == pytest.approx((100 * FRAME.isna().mean()).tolist())
    (image,) = pattern.get_images()
    pale = np.isclose(image.get_array()[..., 0], 0.86)
    assert (pale == ~MASK.numpy()).all()


def test_histograms_are_shares_of_what_was_observed_and_filled_in(trained):
    filled = impute(trained[0], X)
    axes = plot.imputations(X, filled).axes[0]
    known, found = (patch.get_data().values for patch in axes.patches)
    assert known.sum() == pytest.approx(1.0)
    assert found.sum() == pytest.approx(1.0)
    edges = axes.patches[0].get_data().edges
    column = X[MASK[:, 0], 0].numpy().clip(edges[0], edges[-1])
    assert np.array_equal(known, np.histogram(column, edges)[0] / len(column))


def test_bins_of_whole_numbers_hold_as_many_of_them_each():
    x = np.arange(900.0)[:, None] % 90
    x[::9] = np.nan
    (known, _) = (own.get_data() for own in plot.imputations(x, np.nan_to_num(x)).axes[0].patches)
    assert len(set(np.diff(known.edges))) == 1
    assert (known.edges % 1 == 0.5).all()
    assert known.edges[0] < 1 < 88 < known.edges[-1]


def test_names_with_dollar_signs_are_no_formulas(trained, tmp_path):
    names = ["US$ and A$", r"$\nothing$", *NAMES[2:]]
    for figure in (
        plot.missingness(X, names=names),
        plot.imputations(X, impute(trained[0], X), names=names),
        plot.reconstructions(trained[0], X, names=names),
        plot.relays(trained[0], names=names),
    ):
        written(figure, tmp_path)
    titles = plot.missingness(X, names=names).axes[1].get_xticklabels()
    # as they are drawn
    assert titles[0]._preprocess_math(titles[0].get_text())[0] == names[0]


def test_points_of_a_map_are_the_posterior_means(trained):
    model, _ = trained
    (drawn,) = plot.latents(model, dimensions=(2, 0)).axes[0].collections
    means = model.posterior.mean().detach().numpy()
    assert np.allclose(drawn.get_offsets(), means[:, [2, 0]])
    new = infer(model, X[:10], steps=2)
    (drawn,) = plot.latents(new, dimensions=(0, 1)).axes[0].collections
    assert np.allclose(drawn.get_offsets(), new.mean().detach().numpy()[:, :2])


def test_a_map_turns_means_to_their_principal_components(trained):
    model, _ = trained
    (drawn,) = plot.latents(model).axes[0].collections
    found = np.asarray(drawn.get_offsets())
    means = model.posterior.mean().detach().double().numpy()
    values = np.linalg.eigvalsh(np.cov(means.T))[::-1][:2]
    assert np.cov(found.T) == pytest.approx(np.diag(values), abs=1e-6)


def test_the_history_marks_the_least_held_out_error(trained):
    _, history = trained
    best = int(np.argmin(history["held_out"]))
    shown = " ".join(texts(history.plot()))
    assert f"{history['held_out'][best]:.3g}, in epoch {best + 1}" in shown
    assert {"loss", "KL divergence", "observed", "held out"} <= set(texts(history.plot()))
    lines = history.plot().axes[0].get_lines()
    assert lines[0].get_ydata() == pytest.approx(history["loss"])
    with pytest.raises(ValueError, match="history: expected at least one epoch, got none"):
        History().plot()


def test_what_needs_one_pair_of_axes_draws_into_those_that_are_given(trained):
    model, history = trained
    figure = new_figure(9.0, 3.0)
    axes = figure.subplots(1, 3)
    assert history.plot(ax=axes[0]) is figure
    assert plot.latents(model, ax=axes[1]) is figure
    assert plot.coverage(FULL, impute(model, X, num_draws=4), mask=~MASK, ax=axes[2]) is figure
    assert all(ax.has_data() for ax in axes)
    with pytest.raises(TypeError, match="ax: expected matplotlib Axes or None, got Figure"):
        plot.latents(model, ax=figure)


@pytest.mark.parametrize("count", [2, 7, 100])
def test_draws_from_the_law_of_the_truth_lie_on_the_diagonal(count):
    generator = np.random.default_rng(0)
    levels, shares = covered(generator.normal(size=40_000), generator.normal(size=(count, 40_000)))
    assert (np.diff(levels) > 0).all()
    assert np.abs(shares - levels).max() < 0.015


def test_draws_that_are_too_sure_lie_below_the_diagonal():
    generator = np.random.default_rng(0)
    truth, draws = generator.normal(size=20_000), 0.5 * generator.normal(size=(99, 20_000))
    levels, shares = covered(truth, draws)
    inner = (levels > 0.2) & (levels < 0.95)
    assert (shares[inner] < levels[inner] - 0.05).all()
    # of draws that are 1/2 as wide, half the distance is covered
    level = np.abs(levels - 0.9).argmin()
    assert shares[level] == pytest.approx(0.589, abs=0.02)


REFUSED = {
    "as the posterior has": lambda model: plot.reconstructions(model, X[:5]),
    "rows: expected numbers from 0 to 79": lambda model: plot.reconstructions(model, X, rows=[80]),
    r"image_shape: expected height \* width = 6": lambda model: plot.relays(
        model, image_shape=(4, 4)
    ),
    "names: expected 6, one a column, got 1": lambda model: plot.missingness(X, names=["a"]),
    "dimensions: expected two below 3": lambda model: plot.latents(model, dimensions=(0, 3)),
    "labels: expected 80, got": lambda model: plot.latents(model, labels=[1]),
    r"filled: expected \[80, 6\]": lambda model: plot.imputations(X, X[:3]),
    "x: expected missing entries, got none": lambda model: plot.imputations(FULL, FULL),
    r"draws: expected \[S, 80, 6\] with S >= 2": lambda model: plot.coverage(FULL, FULL),
    "mask: expected entries to judge": lambda model: plot.coverage(
        FULL, FULL.expand(2, N, D), mask=torch.zeros(N, D, dtype=torch.bool)
    ),
    "mask: expected bool": lambda model: plot.missingness(X, mask=MASK[:3]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_refused_in_words(words, trained):
    with pytest.raises(ValueError, match=words):
        REFUSED[words](trained[0])


def test_models_without_relays_or_rows_are_refused():
    with pytest.raises(ValueError, match="model: expected a posterior with relay groups"):
        plot.relays(models.vad(N, D, latent_dim=2))
    encoder = models.vae(N, D, latent_dim=2)
    with pytest.raises(ValueError, match="an encoder keeps no rows"):
        plot.reconstructions(encoder, X)
    with pytest.raises(ValueError, match="encoder keeps no rows"):
        plot.latents(encoder)


def test_a_missing_matplotlib_is_named(monkeypatch, trained):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pictures need matplotlib: pip install "rvi-fast\[plot'):
        trained[1].plot()
    with pytest.raises(ImportError, match="pictures need matplotlib"):
        rvi_fast.plot.missingness(X)


# how pictures look


def test_names_at_curves_keep_apart_and_in_order():
    placed = _spread([0.5, 0.51, 0.1, 0.52], 0.1)
    assert sorted(range(4), key=placed.__getitem__) == [2, 0, 1, 3]
    assert (np.diff(sorted(placed)) >= 0.1 - 1e-12).all()
    assert placed[2] == pytest.approx(0.1)
    assert np.mean([placed[0], placed[1], placed[3]]) == pytest.approx(0.51)
    assert _spread([], 0.1) == []


def test_names_stand_at_the_height_of_the_ends_of_their_curves():
    axes = new_figure(4.0, 3.0).subplots()
    axes.set_ylim(0, 10)
    name_ends(axes, {"low": (1.0, "red"), "high": (9.0, "blue")})
    places = {text.get_text(): text.xy[1] for text in axes.texts}
    assert places == {"low": pytest.approx(0.1), "high": pytest.approx(0.9)}


def test_no_two_of_many_curves_look_alike():
    styles = [tuple(map(str, style_of(number).values())) for number in range(28)]
    assert len(set(styles)) == 28
    assert len(set(PALETTE)) == 8


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (6, 3), (9, 3), (8, 4), (12, 4)])
def test_a_grid_has_no_empty_places_where_it_need_not(count, columns):
    assert columns_for(count) == columns
