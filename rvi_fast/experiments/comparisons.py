"""Comparisons of runs, seed by seed."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .figure import Bound, Results, named
from .recipes import RECIPES

_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt}
FEW = 10  # epochs from a linear model's solution
ROBUST = 1.2  # an error at most this many times the best one is no worse


@dataclass(frozen=True)
class Comparison:
    """Two quantities, by seed.

    Args:
        where: at which setting.
        names: of the two sides.
        ours, theirs: numbers in pairs, those of a seed; where it is not known which of two numbers is
            of which seed, every pair that there can be.
        sign: what the claim puts between them.
        unit: "" for errors and shares; "epochs" for counts, where inf is never.
    """

    where: str
    names: tuple[str, str]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    sign: str = "<"
    unit: str = ""

    @property
    def outcome(self) -> bool | None:
        """Whether it holds; None if that depends on the seed."""
        found = {_SIGNS[self.sign](*pair) for pair in zip(self.ours, self.theirs, strict=True)}
        return found.pop() if len(found) == 1 else None

    def __str__(self) -> str:
        return f"{self.left}, {self.right}"

    @property
    def left(self) -> str:
        """Our side in words."""
        prefix = f"{self.where}: " if self.where else ""
        return f"{prefix}{self.names[0]} {self._number(self.ours)}"

    @property
    def right(self) -> str:
        """Their side in words."""
        return f"{self.names[1]} {self._number(self.theirs)}"

    def _number(self, values: Sequence[float]) -> str:
        array = np.array(values)
        if self.unit != "epochs":
            return f"{array.mean():.4f}"
        never = len(array) - int(np.isfinite(array).sum())
        if never:
            return "never" if never == len(array) else f"never in {never} of {len(array)}"
        return f"{array.mean():.0f} epochs"


Value = Callable[[dict[str, Any]], Any]
Compare = Callable[[Results], list[Comparison]]
# of a run
Key = int | Bound


def _by_seed(results: Results, value: Value, **fields: Any) -> dict[Key, Any]:
    """What runs come to by their seed, or by the bound that they are where that is not known."""
    found = {}
    for experiment, result in results:
        if all(getattr(experiment, name) == wanted for name, wanted in fields.items()):
            number = value(result)
            if number is not None:
                found[result.get("bound", experiment.seed)] = number
    return found


def _pairs(ours: Iterable[Key], theirs: Iterable[Key]) -> list[tuple[Key, Key]]:
    """The runs that are compared: those of a seed, and a bound with every run."""
    return [
        (own, other)
        for own, other in itertools.product(ours, theirs)
        if own == other or isinstance(own, Bound) or isinstance(other, Bound)
    ]


def _levels(results: Results, *fields: str) -> list[tuple[Any, ...]]:
    return sorted({tuple(getattr(each, name) for name in fields) for each, _ in results})


def _where(fields: Sequence[str], level: Sequence[Any]) -> str:
    pairs = zip(fields, level, strict=True)
    return ", ".join(itertools.starmap(named, pairs))


def against(value: Value, *rivals: str, over: tuple[str, ...], **options: Any) -> Compare:
    """RVI against other models at every level of some fields."""

    def compare(results: Results) -> list[Comparison]:
        found = []
        for level in _levels(results, *over):
            fields = dict(zip(over, level, strict=True))
            own = _by_seed(results, value, model="rvi", **fields)
            for rival in rivals:
                other = _by_seed(results, value, model=rival, **fields)
                names = ("RVI", RECIPES[rival].label)
                found += _paired(_where(over, level), names, own, other, **options)
        return found

    return compare


def _paired(
    where: str,
    names: tuple[str, str],
    ours: Mapping[Key, float],
    theirs: Mapping[Key, float],
    **options: Any,
) -> list[Comparison]:
    """A comparison of the seeds that both have, or none."""
    pairs = _pairs(ours, theirs)
    return _compared(where, names, [(ours[own], theirs[other]) for own, other in pairs], **options)


def _compared(
    where: str, names: tuple[str, str], pairs: Sequence[tuple[float, float]], **options: Any
) -> list[Comparison]:
    """A comparison of numbers in pairs, or none where there is no pair."""
    if not pairs:
        return []
    ours, theirs = (tuple(numbers) for numbers in zip(*pairs, strict=True))
    return [Comparison(where, names, ours, theirs, **options)]


def epochs_to(curve: Sequence[float], target: float) -> float:
    """Epochs, from 1, after which a curve is first at or below the target; inf if never."""
    below = np.flatnonzero(np.array(curve) <= target)
    return float(below[0] + 1) if len(below) else float("inf")


def reaches(rival: str, *over: str) -> Compare:
    """Epochs in which RVI is where its rival ends, against the epochs of the rival."""

    def compare(results: Results) -> list[Comparison]:
        found = []
        for level in _levels(results, *over):
            fields = dict(zip(over, level, strict=True))
            own = _by_seed(results, lambda result: result["elastic"], model="rvi", **fields)
            other = _by_seed(results, lambda result: result["elastic"], model=rival, **fields)
            pairs = [
                (epochs_to(own[seed], other[rivals][-1]), float(len(other[rivals])))
                for seed, rivals in _pairs(own, other)
            ]
            names = ("RVI", RECIPES[rival].label)
            found += _compared(_where(over, level), names, pairs, unit="epochs")
        return found

    return compare


def started(results: Results) -> list[Comparison]:
    """Epochs from a linear model's solution to where VAD ends from drawn values, of RVI and VAD."""
    drawn, linear = (
        [pair for pair in results if (pair[0].linear_factors > 0) is wanted]
        for wanted in (False, True)
    )

    def curves(runs: Results, **fields: Any) -> dict[Key, list[float]]:
        return _by_seed(runs, lambda result: result["elastic"], **fields)

    found = []
    for (missing,) in _levels(results, "missing"):
        ends = curves(drawn, model="vad", missing=missing, posterior_lr=None)
        own, other = (
            {
                seed: epochs_to(curve, ends[seed][-1])
                for seed, curve in curves(linear, model=model, missing=missing).items()
                if seed in ends
            }
            for model in ("rvi", "vad")
        )
        for name, rival, sign in (
            ("goal", dict.fromkeys(own, float(FEW)), "<="),
            ("VAD", other, "<"),
        ):
            where = _where(["missing"], [missing])
            found += _paired(where, ("RVI", name), own, rival, sign=sign, unit="epochs")
    return found


def classified(results: Results) -> list[Comparison]:
    """Lowest cross-entropy, highest accuracy, and how soon."""
    own, other = (
        _by_seed(results, lambda result: result["cross_entropy"], model=model)
        for model in ("rvi", "vae")
    )
    least = [{seed: min(curve) for seed, curve in curves.items()} for curves in (own, other)]
    most = [
        _by_seed(results, lambda result: max(result["accuracy"]), model=model)
        for model in ("rvi", "vae")
    ]
    epochs = [
        (epochs_to(own[ours], min(other[theirs])), epochs_to(other[theirs], min(other[theirs])))
        for ours, theirs in _pairs(own, other)
    ]
    names = ("RVI", "VAE")
    return [
        *_paired("lowest cross-entropy", names, *least),
        *_paired("highest accuracy", names, *most, sign=">"),
        *_compared("to the VAE's lowest cross-entropy", names, epochs, unit="epochs"),
    ]


def robust(value: Value, field: str) -> Compare:
    """Every level against the best one of the same seed."""

    def compare(results: Results) -> list[Comparison]:
        levels = [level for (level,) in _levels(results, field)]
        errors = {level: _by_seed(results, value, **{field: level}) for level in levels}
        if len(levels) < 2:
            return []
        best = min(levels, key=lambda level: float(np.mean([*errors[level].values()])))
        limit = {seed: ROBUST * error for seed, error in errors[best].items()}
        names = ("error", "limit")
        return [
            comparison
            for level in levels
            if level != best
            for comparison in _paired(
                _where([field], [level]), names, errors[level], limit, sign="<="
            )
        ]

    return compare


def stages(results: Results) -> list[Comparison]:
    """Each group of relays against one group less."""
    found = []
    for (groups,) in _levels(results, "groups"):
        stages = _by_seed(results, lambda result: result["stages"], groups=groups)
        for count in range(1, len(groups) + 1):
            more, less = (
                {seed: stage[used] for seed, stage in stages.items()} for used in (count, count - 1)
            )
            names = (f"first {count}", f"first {count - 1}" if count > 1 else "none")
            found += _paired(_where(["groups"], [groups]), names, more, less)
    return found


def more_groups(results: Results) -> list[Comparison]:
    """The whole model with each choice of groups against the choice with one group less."""
    levels = sorted((groups for (groups,) in _levels(results, "groups")), key=len)
    errors = [_by_seed(results, lambda result: result["stages"][-1], groups=g) for g in levels]
    names = ["-".join(map(str, groups)) for groups in levels]
    return [
        comparison
        for k in range(1, len(levels))
        for comparison in _paired("", (names[k], names[k - 1]), errors[k], errors[k - 1])
    ]


def forms(results: Results) -> list[Comparison]:
    """Linear relays against clusters."""
    linear, cluster = (_by_seed(results, last, form=form) for form in ("linear", "cluster"))
    return _paired("training error", ("linear", "cluster"), linear, cluster)


def same_recipe(quantity: str) -> Compare:
    """RVI against VAD with the same units and the same start of the standard deviations."""

    def compare(results: Results) -> list[Comparison]:
        found = []
        for units, missing in _levels(results, "units", "missing"):
            for more in ("", ", log std -1"):
                names = (f"RVI{more}", f"VAD{more}")
                errors = [
                    _by_seed(results, _entry(quantity), method=name, units=units, missing=missing)
                    for name in names
                ]
                where = f"{_where(['missing'], [missing])}, {units} units"
                found += _paired(where, names, *errors, sign="<=")
        return found

    return compare


def beside_simple_ones(quantity: str) -> Compare:
    """RVI against imputers that learn no latents, in the same units."""

    def compare(results: Results) -> list[Comparison]:
        found = []
        for units, missing in _levels(results, "units", "missing"):
            own = _by_seed(results, _entry(quantity), method="RVI", units=units, missing=missing)
            for rival in ("all zeros", "conditional Gaussian"):
                fields = {"method": rival, "units": units, "missing": missing}
                other = _by_seed(results, _entry(quantity.replace("wide", "test")), **fields)
                where = f"{_where(['missing'], [missing])}, {units} units"
                found += _paired(where, ("RVI", rival), own, other)
        return found

    return compare


def _entry(quantity: str) -> Value:
    return lambda result: result[quantity]


def train(result: dict[str, Any]) -> float:
    """Final error over observed training entries."""
    return result["train_observed"]


def last(result: dict[str, Any]) -> float:
    """The same by the curve: the error after the last epoch."""
    return result["elastic"][-1]


def test(result: dict[str, Any]) -> float:
    """Error over observed test entries."""
    return result["test_observed"]


def imputed(result: dict[str, Any]) -> float | None:
    """Error over hidden test entries."""
    return result["test_missing"]


def boxes(results: Results) -> list[Comparison]:
    """RVI against both rivals, observed and imputed."""
    found = []
    for value, name in ((test, "observed"), (imputed, "imputed")):
        for comparison in against(value, "vad", "vae", over=("boxes",))(results):
            found.append(replace(comparison, where=f"{name}, {comparison.where}"))
    return found
