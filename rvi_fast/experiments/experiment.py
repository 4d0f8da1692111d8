"""One run of an experiment: data, missingness, training, and everything that is scored."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import data, models
from ..drawing import drawing_from
from ..posteriors.relay import RelayPosterior
from ..training import History, fit, infer
from ..training.loop.seeds import stream
from . import latents

# share of the rows of a set without a test part that become one
_TEST_SHARE = 0.25
_SHOWN = 8  # images kept of a progression
_SPLIT, _CLASSIFIER = 1, 2  # uses of the seed
# rows without relays need larger steps; an encoder takes none
INFER_LR = {"rvi": 0.01, "vad": 0.03, "vae": 0.01}


@dataclass(frozen=True)
class Experiment:
    """What a run depends on; two equal ones give equal results.

    Args:
        data: a name or a path, as `data.load_data` takes it.
        rows: training rows drawn by the seed; None takes all. `test_rows` likewise.
        missing: rate of entries missing completely at random.
        boxes: missing boxes of 4x4 pixels per image.
        model: "rvi", "vad" or "vae"; groups, top and form concern "rvi" alone.
        posterior_lr: learning rate of rows, relays or encoder; None is `lr`.
        infer_steps, infer_lr: of the posteriors of test rows; None is what suits the model.
        classifier_epochs: a classifier is trained on the representations for so long; 0 for none.
        progression: keep images and scores of reconstructions from the first groups only.
        latents: keep straight lines between latent means and a map of the test rows.
        seed: of rows, masks, parameters, order and noise.

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
    epochs: int = 250
    batch_size: int = 256
    lr: float = 1e-3
    posterior_lr: float | None = None
    infer_steps: int = 100
    infer_lr: float | None = None
    classifier_epochs: int = 0
    progression: bool = False
    latents: bool = False
    seed: int = 0

    def result(self, directory: Path, data_dir: str | Path | None = None) -> dict[str, Any]:
        """Trains and scores, see `run`; a figure of other runs has a class with another `result`."""
        return run(self, directory, data_dir=data_dir)


class Part(NamedTuple):
    """Rows as the model sees them: x uint8 or standardised, mask true = shown."""

    x: np.ndarray
    mask: np.ndarray
    known: np.ndarray
    labels: np.ndarray | None

    def scores(self, prefix: str, reconstruction: np.ndarray) -> dict[str, float | None]:
        """Elastic error of shown and of hidden entries; None where there are none."""
        entries = {"observed": self.mask, "missing": self.known & ~self.mask}
        return {
            f"{prefix}_{name}": data.elastic(self.x, reconstruction, scored)
            if scored.any()
            else None
            for name, scored in entries.items()
        }


def run(
    experiment: Experiment,
    directory: Path,
    *,
    data_dir: str | Path | None = None,
    checkpoint_every: float = 30.0,
) -> dict[str, Any]:
    """Trains, infers the test rows and scores; goes on from the checkpoints in `directory`.

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
    model, history = trained(experiment, train, directory, checkpoint_every)
    posterior = infer(model, train.x, mask=train.mask) if model.amortized else model.posterior
    inferred = infer(
        model,
        test.x,
        mask=test.mask,
        steps=experiment.infer_steps,
        lr=experiment.infer_lr or INFER_LR[experiment.model],
        seed=experiment.seed,
    )
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
            model.decoder, posterior.mean(), train.x, inferred.mean(), test.labels, directory
        )
    return result


def trained(
    experiment: Experiment, train: Part, directory: Path, checkpoint_every: float = 30.0
) -> tuple[models.LatentModel, History]:
    """A model of the training rows; goes on from the checkpoints in `directory`."""
    model = _model(experiment, train.x.shape)
    history = fit(
        model,
        train.x,
        mask=train.mask,
        standardize=False,  # the parts are
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        lr=experiment.lr,
        posterior_lr=experiment.posterior_lr,
        seed=experiment.seed,
        progress=False,
        run_dir=directory,
        resume=True,
        checkpoint_every=checkpoint_every,
    )
    return model, history


def _model(experiment: Experiment, shape: tuple[int, ...]) -> models.LatentModel:
    options: dict[str, Any] = {}
    if experiment.model == "rvi":
        options = {name: getattr(experiment, name) for name in ("groups", "top", "form")}
    return models.BUILDERS[experiment.model](
        *shape,
        latent_dim=experiment.latent_dim,
        hidden=experiment.hidden,
        generator=torch.Generator().manual_seed(experiment.seed),
        **options,
    )


@functools.lru_cache(maxsize=2)
def _dataset(name: str, data_dir: str | None) -> data.Dataset:
    return data.load_data(name, data_dir=data_dir)


def parts(experiment: Experiment, data_dir: str | Path | None) -> tuple[Part, Part]:
    """Training and test rows, those that the seed draws, with what the seed hides."""
    dataset = _dataset(experiment.data, None if data_dir is None else str(data_dir))
    train, test = dataset.train, dataset.test
    labels, test_labels = dataset.train_labels, dataset.test_labels
    if test is None:  # the same split for every seed
        order = np.random.default_rng(0).permutation(len(train))
        held_out = max(1, round(_TEST_SHARE * len(train)))
        if held_out == len(train):
            raise ValueError(f"data: expected at least two rows, {experiment.data} has one")
        tested, trained = np.sort(order[:held_out]), np.sort(order[held_out:])
        test, train = train[tested], train[trained]
        if labels is not None:
            labels, test_labels = labels[trained], labels[tested]
    generator = np.random.default_rng((experiment.seed, _SPLIT))
    parts = []
    for number, (name, raw, own, count) in enumerate(
        (
            ("rows", train, labels, experiment.rows),
            ("test_rows", test, test_labels, experiment.test_rows),
        )
    ):
        chosen = generator.permutation(len(raw))
        if count is not None:
            if not 1 <= count <= len(raw):
                raise ValueError(f"{name}: expected 1 to {len(raw)}, got {count}")
            chosen = chosen[:count]
        chosen.sort()
        raw = raw[chosen]
        mask = data.mcar(raw.shape, experiment.missing, seed=2 * experiment.seed + number)
        if experiment.boxes:
            if dataset.image_shape is None:
                raise ValueError(f"boxes: expected images, {experiment.data} holds none")
            seed = 2 * experiment.seed + number
            mask &= data.missing_boxes(len(raw), dataset.image_shape, experiment.boxes, seed=seed)
        known = np.ones_like(mask) if raw.dtype == np.uint8 else ~np.isnan(raw)
        parts.append(Part(raw, mask & known, known, None if own is None else own[chosen]))
    if parts[0].x.dtype != np.uint8:
        standardizer = data.Standardizer.fit(parts[0].x, parts[0].mask, robust=False)
        parts = [part._replace(x=standardizer.transform(part.x)) for part in parts]
    return parts[0], parts[1]


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
        network = nn.Sequential(nn.Linear(z.shape[1], 64), nn.ReLU(), nn.Linear(64, classes))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    entropies, accuracies = [], []
    for _ in range(experiment.classifier_epochs):
        for index in torch.randperm(len(z), generator=generator).split(experiment.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(z[index]), y[index]).backward()
            optimizer.step()
        with torch.no_grad():
            logits: Tensor = network(z_test)
        entropies.append(float(nn.functional.cross_entropy(logits, y_test)))
        accuracies.append(float((logits.argmax(1) == y_test).double().mean()))
    return {"cross_entropy": entropies, "accuracy": accuracies}


@torch.no_grad()
def _progress(model: models.LatentModel, train: Part, directory: Path) -> list[float]:
    """Elastic error over known entries by the groups used; the first images go to a file."""
    posterior, scores, images = model.posterior, [], []
    stages = [(count, False) for count in range(len(posterior.layout.groups) + 1)]
    for count, deviation in (*stages, (None, True)):
        means = posterior.mean(groups=count, deviation=deviation)
        decoded = torch.cat([model.decoder(part) for part in means.split(8192)]).numpy()
        scores.append(data.elastic(train.x, decoded, train.known))
        images.append(decoded[:_SHOWN])
    originals = train.x[:_SHOWN]
    originals = originals / 255.0 if originals.dtype == np.uint8 else originals
    # sweeps replace result.json last, so that this file is whole wherever that one is
    data.save_table(directory / "progression.npy", np.stack((*images, originals)))
    assert all(map(math.isfinite, scores))
    return scores
