"""How large the figures are made: every size in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..data import DATASETS
from .experiment import Experiment

# sets whose rows are images
IMAGES = ("digits", "mnist", "fashion-mnist")


@dataclass(frozen=True)
class Scale:
    """Sizes and grids of all figures.

    Args:
        images: sets of images; the first one serves figures of one set.
        tables: further sets without images.
        common: fields of every `Experiment`.
        seeds: runs of each configuration.
        lrs, decoders: the grid of Figure 1.
        grid_missing, curve_missing, missing: missing rates of Figures 1, 2, and 3 to 4.
        posterior_lrs: of Figure 6.
        ratios: m/K of Figure 10.
        boxes: missing boxes of Figure 11.
        classifier_epochs: of Figure 5.
        latent_dims: of the figure on latent dimensions.
        own: figure -> what differs there: fields of this class or of `Experiment`.
        sets: data set -> fields of `Experiment` that differ there, in every figure.
        name: in `SCALES`; by it a figure finds sizes of its own.
    """

    images: tuple[str, ...]
    tables: tuple[str, ...]
    common: Mapping[str, Any]
    seeds: int
    lrs: tuple[float, ...]
    decoders: tuple[tuple[int, ...], ...]
    grid_missing: tuple[float, ...]
    curve_missing: tuple[float, ...]
    missing: tuple[float, ...]
    posterior_lrs: tuple[float, ...]
    ratios: tuple[float, ...]
    boxes: tuple[int, ...]
    classifier_epochs: int
    latent_dims: tuple[int, ...]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    name: str = ""

    def of(self, figure: str) -> Scale:
        """The sizes of one figure."""
        own = self.own.get(figure, {})
        names = {entry.name for entry in fields(self)} & own.keys()
        common = {**self.common, **{name: own[name] for name in own if name not in names}}
        return replace(self, common=common, **{name: own[name] for name in names})

    def on(self, sets: Sequence[str]) -> Scale:
        """The same on other data sets; a path is that of a table, of which all rows are taken."""
        images = tuple(name for name in sets if name in IMAGES)
        tables = tuple(name for name in sets if name not in IMAGES)
        whole = {name: {"rows": None, "test_rows": None} for name in sets if name not in DATASETS}
        return replace(self, images=images, tables=tables, sets={**whole, **self.sets})

    def experiment(self, *, data: str, **chosen: Any) -> Experiment:
        """A run on `data`: the common sizes, then those of the data set, then what is chosen."""
        return Experiment(data=data, **{**self.common, **self.sets.get(data, {}), **chosen})


_TENTHS = tuple(tenth / 10 for tenth in range(10))

# where the paper names no values (lrs, posterior_lrs, seeds), they are ours; mosi, though it has labels,
# is not classified: logistic regression on its features alone is right for 94 % of the test rows
SCALES = {
    # digits need no file
    "quick": Scale(
        name="quick",
        images=("digits",),
        tables=("artificial",),
        common={
            "rows": 1000,
            "test_rows": 300,
            "epochs": 40,
            "batch_size": 32,
            "infer_steps": 50,
        },
        seeds=2,
        lrs=(1e-3, 1e-2),
        decoders=((64,), (64, 64)),
        grid_missing=(0.0, 0.5),
        curve_missing=(0.0, 0.5, 0.9),
        missing=(0.0, 0.3, 0.6, 0.9),
        posterior_lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        ratios=tuple(tenth / 10 for tenth in (1, 3, 5, 7, 9)),
        boxes=(1, 2),
        classifier_epochs=30,
        latent_dims=(2, 4, 8, 16, 32, 64),
    ),
    # meant for an hour or so on two cores
    "reduced": Scale(
        name="reduced",
        images=("mnist",),
        tables=("mosi", "artificial"),
        common={
            "rows": 10_000,
            "test_rows": 2000,
            "epochs": 100,
            "batch_size": 256,
            "infer_steps": 50,
        },
        seeds=2,
        lrs=(1e-3, 1e-2),
        decoders=((64,), (64, 64)),
        grid_missing=(0.0, 0.5, 0.9),
        curve_missing=(0.0, 0.5, 0.9),
        missing=(0.0, 0.3, 0.5, 0.9),
        posterior_lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        ratios=tuple(tenth / 10 for tenth in (1, 3, 5, 7, 9)),
        boxes=(10, 20),
        classifier_epochs=100,
        latent_dims=(2, 8, 16, 32, 64, 128),
        own={
            "fig1": {"epochs": 25},
            "fig2": {"images": ("mnist", "fashion-mnist"), "epochs": 250},
            # they share the runs of Figure 2, which makes its epochs cheap
            "fig3": {"epochs": 250},
            "fig4": {"epochs": 250},
            "fig5": {"images": ("mnist", "fashion-mnist")},
            "fig8": {"images": ("mnist", "fashion-mnist"), "epochs": 250},
            "fig10": {"epochs": 250},
            "interpolation": {"images": ("mnist", "fashion-mnist")},
            "imputation": {"missing": (0.5, 0.9), "seeds": 1},
            "map": {"images": ("mnist", "fashion-mnist")},
            "scale": {"epochs": 250},
            "start": {"epochs": 250, "curve_missing": (0.5,)},
        },
        sets={
            # 1,284 and 686 rows; batches that make as many steps an epoch as 10,000 rows in 256
            "mosi": {"rows": None, "test_rows": None, "batch_size": 32, "epochs": 100},
            "artificial": {"epochs": 100},
        },
    ),
    "paper": Scale(
        name="paper",
        images=("mnist", "fashion-mnist"),
        tables=("mosi", "artificial"),
        common={"rows": 10_000, "epochs": 250, "batch_size": 256},
        seeds=5,
        lrs=(1e-4, 1e-3, 1e-2),
        decoders=((64,), (64, 64), (64, 64, 64)),
        grid_missing=_TENTHS,
        curve_missing=(0.0, 0.5, 0.9),
        missing=_TENTHS,
        posterior_lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        ratios=_TENTHS[1:],
        boxes=(10, 20),
        classifier_epochs=250,
        latent_dims=(2, 8, 16, 32, 64, 128),
        sets={"mosi": {"rows": None}},
    ),
}
