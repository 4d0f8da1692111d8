"""One run of an experiment: data, missingness, training, and everything that is scored."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import data, models
from ..data.pixels import fractions, is_pixels, observed
from ..data.recipe import Units, rows_of_figure, scores, shown
from ..drawing import drawing_from
from ..posteriors.relay import RelayPosterior
from ..training import History, infer, start_linear
from ..training.loop.seeds import stream
from ..training.settings import Settings
from . import latents
from .recipes import RECIPES
from .work import Work, finished

_SHOWN = 8  # images kept of a progression
_CLASSIFIER = 2  # use of the seed; another one is in `data.recipe`
# of the linear model that a training starts from: after fifteen its epochs are the same
_EM_STEPS = 5


@dataclass(frozen=True)
class Experiment:
    """What a run depends on; two equal ones give equal results.

    Args:
        data: a name or a path, as `data.load_data` takes it.
        rows: training rows drawn by the seed; None takes all. `test_rows` likewise.
        missing: rate of entries missing completely at random.
        boxes: missing boxes of 4x4 pixels per image.
        model: a name in `recipes.RECIPES`; groups, top and form concern "rvi" alone.
        posterior_lr: learning rate of rows, relays or encoder; None is `lr`.
        infer_steps, infer_lr: of the posteriors of test rows, unless an encoder gives them; None is what
            suits the model.
        classifier_epochs: a classifier is trained on the representations for so long; 0 for none.
        progression: keep images and scores of reconstructions from the first groups only.
        latents: keep straight lines between latent means and a map of the test rows.
        seed: of rows, masks, parameters, order and noise.
        initial_log_std: where rows' log standard deviations start, unless the recipe says it.
        scale_update: how the likelihood's scale is learned, see `fit`.
        linear_factors: the training starts from a linear model of so many, see `start_linear`; 0: from
            drawn values. Not for models with an encoder.

    Further fields need a default, and count towards the name of a run where they differ from it: see
    `sweep.directory_of`.
    """

    # what 0.1.0 named runs by
    NAMED: ClassVar[frozenset[str]] = frozenset(
        (
            *("data", "rows", "test_rows", "missing", "boxes", "model", "latent_dim", "hidden"),
            *("groups", "top", "form", "epochs", "batch_size", "lr", "posterior_lr", "infer_steps"),
            *("infer_lr", "classifier_epochs", "progression", "latents", "seed"),
        )
    )

    data: str = "digits"
    rows: int | None = None
    test_rows: int | None = None
    missing: float = 0.5
    boxes: int = 0
    model: str = "rvi"
    latent_dim: int = 64
    hidden: tuple[int, ...] = (64, 64)
    groups: tuple[int, ...] = (25, 50, 100)
    top: float = 0.5
    form: str = "linear"
    epochs: int = Settings.epochs
    batch_size: int = Settings.batch_size
    lr: float = Settings.lr
    posterior_lr: float | None = Settings.posterior_lr
    infer_steps: int = 100
    infer_lr: float | None = None
    classifier_epochs: int = 0
    progression: bool = False
    latents: bool = False
    seed: int = 0
    initial_log_std: float = RelayPosterior.initial_log_std
    scale_update: str = Settings.scale_update
    linear_factors: int = 0

    @property
    def shape(self) -> tuple[Any, ...]:
        """What runs have in common that take steps of one size, and equally many."""
        network = self.model, self.latent_dim, self.hidden, self.groups, self.form
        skip = self.linear_factors > 0
        return self.data, self.rows, *network, skip, self.epochs, self.batch_size

    def result(
        self, directory: Path, data_dir: str | Path | None = None
    ) -> dict[str, Any] | Work[dict[str, Any]]:
        """Trains and scores, see `work`; a figure of other runs has a class with another `result`.

        Returns:
            What JSON can hold, or the work that comes to it.
        """
        return work(self, directory, data_dir=data_dir)


class Part(NamedTuple):
    """Rows as the model sees them: x uint8 or standardised, mask true = shown."""

    x: np.ndarray
    mask: np.ndarray
    known: np.ndarray
    labels: np.ndarray | None

    def scores(self, prefix: str, reconstruction: np.ndarray) -> dict[str, float | None]:
        """Elastic error of shown and of hidden entries; None where there are none."""
        found = scores(self.x, reconstruction, self.mask, self.known)
        return {f"{prefix}_{k}": error if count else None for k, (error, count) in found.items()}


def run(
    experiment: Experiment,
    directory: Path,
    *,
    data_dir: str | Path | None = None,
    checkpoint_every: float = 30.0,
) -> dict[str, Any]:
    """Trains, infers the test rows and scores; goes on from the checkpoints in `directory`.

    Returns:
        See `work`.
    """
    own = work(experiment, directory, data_dir=data_dir, checkpoint_every=checkpoint_every)
    return finished(own)


def work(
    experiment: Experiment,
    directory: Path,
    *,
    data_dir: str | Path | None = None,
    checkpoint_every: float = 30.0,
) -> Work[dict[str, Any]]:
    """As `run`, for whoever trains models of several runs at the same time.

    Returns:
        "elastic", "loss" by epoch; "train_observed", "train_missing", "test_observed",
        "test_missing"; with a classifier "cross_entropy" and "accuracy" by its epoch; with a
        progression "stages", by the number of groups and last with the deviation; with latents
        what `latents.explore` returns.
    """
    train, test = parts(experiment, data_dir)
    for wish in ("classifier_epochs", "latents"):
        if getattr(experiment, wish) and (train.labels is None or test.labels is None):
            raise ValueError(f"{wish}: {experiment.data} has no labels")
    model, history = yield from trained(experiment, train, directory, checkpoint_every)
    posterior = infer(model, train.x, mask=train.mask) if model.amortized else model.posterior
    inferred = found(experiment, model, test)
    # what follows is arithmetic with tables of the host, wherever the model was trained
    model, posterior, inferred = model.cpu(), posterior.cpu(), inferred.cpu()
    result: dict[str, Any] = {"elastic": history["elastic"], "loss": history["loss"]}
    for prefix, part, own in (("train", train, posterior), ("test", test, inferred)):
        result |= part.scores(prefix, model.reconstruct(posterior=own).numpy())
    if experiment.classifier_epochs:
        result |= _classify(experiment, (posterior, train), (inferred, test))
    if experiment.progression:
        result["stages"] = _progress(model, train, directory)
    if experiment.latents:
        assert test.labels is not None
        result |= latents.explore(
            functools.partial(_decoded, model),
            posterior.mean(),
            train.x,
            inferred.mean(),
            test.labels,
            directory,
        )
    return result


def trained(
    experiment: Experiment, train: Part, directory: Path, checkpoint_every: float = 30.0
) -> Work[tuple[models.LatentModel, History]]:
    """A model of the training rows; goes on from the checkpoints in `directory`."""
    model = _model(experiment, train.x.shape)
    if experiment.linear_factors:
        linear = models.ppca(train.x.shape[1], latent_dim=experiment.linear_factors)
        linear.fit(train.x, train.mask, max_iter=_EM_STEPS, seed=experiment.seed)
        start_linear(model, linear, train.x, train.mask, standardize=False)
    history = yield {
        "model": model,
        "x": train.x,
        "mask": train.mask,
        "standardize": False,  # the parts are
        "epochs": experiment.epochs,
        "batch_size": experiment.batch_size,
        "lr": experiment.lr,
        "posterior_lr": experiment.posterior_lr,
        "kl_weight": RECIPES[experiment.model].kl_weight,
        "scale_update": experiment.scale_update,
        "seed": experiment.seed,
        "run_dir": directory,
        "resume": True,
        "checkpoint_every": checkpoint_every,
    }
    return model, history


def found(
    experiment: Experiment,
    model: models.LatentModel,
    part: Part,
    *,
    scale_factor: float | Literal["held-out"] | None = None,
) -> RelayPosterior:
    """The posteriors of rows that were not trained on; the recipe says the factor if it is not given."""
    recipe = RECIPES[experiment.model]
    return infer(
        model,
        part.x,
        mask=part.mask,
        # what an encoder gives is all there is, as for the rows that it was trained on
        steps=0 if model.amortized else experiment.infer_steps,
        lr=experiment.infer_lr or recipe.infer_lr,
        scale_factor=recipe.scale_factor if scale_factor is None else scale_factor,
        seed=experiment.seed,
    )


def _model(experiment: Experiment, shape: tuple[int, ...]) -> models.LatentModel:
    recipe = RECIPES[experiment.model]
    options = dict(recipe.options)
    if recipe.builder != "vae":
        options = {"initial_log_std": experiment.initial_log_std} | options
    if recipe.builder == "rvi":
        options |= {name: getattr(experiment, name) for name in ("groups", "top", "form")}
    return models.BUILDERS[recipe.builder](
        *shape,
        latent_dim=experiment.latent_dim,
        hidden=experiment.hidden,
        skip=experiment.linear_factors > 0,
        generator=torch.Generator().manual_seed(experiment.seed),
        **options,
    )


@functools.lru_cache(maxsize=2)
def _dataset(name: str, data_dir: str | None) -> data.Dataset:
    return data.load_data(name, data_dir=data_dir)


def parts(experiment: Experiment, data_dir: str | Path | None) -> tuple[Part, Part]:
    """Training and test rows, those that the seed draws, with what the seed hides."""
    dataset = _dataset(experiment.data, None if data_dir is None else str(data_dir))
    owners = {
        "train": (dataset.train, dataset.train_labels),
        "test": (dataset.test, dataset.test_labels),
    }
    sizes = len(dataset.train), None if dataset.test is None else len(dataset.test)
    wanted = {"train": ("rows", experiment.rows), "test": ("test_rows", experiment.test_rows)}
    parts = []
    for number, (split, (name, count)) in enumerate(wanted.items()):
        owner, chosen = rows_of_figure(*sizes, split, count, experiment.seed, name)
        table, labels = owners[owner]
        assert table is not None
        raw = table[chosen]
        seed = 2 * experiment.seed + number
        mask = shown(raw.shape, experiment.missing, experiment.boxes, dataset.image_shape, seed)
        known = observed(raw)
        parts.append(Part(raw, mask & known, known, None if labels is None else labels[chosen]))
    units = Units.fit(parts[0].x, parts[0].mask, robust=False)
    train, test = (part._replace(x=units.to_model(part.x)) for part in parts)
    return train, test


def _classify(
    experiment: Experiment,
    train: tuple[RelayPosterior, Part],
    test: tuple[RelayPosterior, Part],
) -> dict[str, list[float]]:
    """Test cross-entropy in nats and accuracy after each epoch of a network on posterior means."""
    (z, y), (z_test, y_test) = (
        (posterior.mean().detach(), torch.from_numpy(part.labels))
        for posterior, part in (train, test)
    )
    generator = torch.Generator().manual_seed(stream(experiment.seed, _CLASSIFIER))
    classes = int(torch.cat((y, y_test)).max()) + 1
    with drawing_from(generator):
        network = nn.Sequential(
            nn.Linear(z.shape[1], 64, device=z.device),
            nn.ReLU(),
            nn.Linear(64, classes, device=z.device),
        )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    entropies, accuracies = [], []
    for _ in range(experiment.classifier_epochs):
        order = torch.randperm(len(z), generator=generator, device="cpu")
        for index in order.split(experiment.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(z[index]), y[index]).backward()
            optimizer.step()
        with torch.no_grad():
            logits: Tensor = network(z_test)
        entropies.append(float(nn.functional.cross_entropy(logits, y_test)))
        accuracies.append(float((logits.argmax(1) == y_test).double().mean()))
    return {"cross_entropy": entropies, "accuracy": accuracies}


def _decoded(model: models.LatentModel, z: Tensor) -> Tensor:
    """The expected x [..., D] of latents [..., T], in the units of the model."""
    return model.ability("mean")(model.decode(z))


@torch.no_grad()
def _progress(model: models.LatentModel, train: Part, directory: Path) -> list[float]:
    """Elastic error over known entries by the groups used; the first images go to a file."""
    posterior, scores, images = model.posterior, [], []
    stages = [(count, False) for count in range(len(posterior.layout.groups) + 1)]
    for count, deviation in (*stages, (None, True)):
        means = posterior.mean(groups=count, deviation=deviation)
        decoded = torch.cat([_decoded(model, part) for part in means.split(8192)]).numpy()
        scores.append(data.elastic(train.x, decoded, train.known))
        images.append(decoded[:_SHOWN])
    originals = train.x[:_SHOWN]
    originals = fractions(originals, np.float64 if is_pixels(originals) else originals.dtype)
    # sweeps replace result.json last, so that this file is whole wherever that one is
    data.save_table(directory / "progression.npy", np.stack((*images, originals)))
    assert all(map(math.isfinite, scores))
    return scores
