"""Which linear-Gaussian model a table gets: the one that best predicts entries held out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .linear_em import Factors, Joint, factor_step, joint_step
from .linear_rows import Data

# of factors: pseudo-rows whose weights are 0, and the variance of a pseudo-entry of noise
_RIDGE, _FLOOR = 1.0, 0.01
# of a covariance: the shares of it that are the identity, the largest first
_SHARES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
# of the observed entries, which are held out; how many of them tables have together, where ten do
_HELD_OUT, _ENOUGH, _TABLES = 0.1, 1000, 10
# entries that candidates see, in how many rows
_ENTRIES, _FEWEST, _MOST = 1 << 18, 1024, 8192
# candidates that are worse than the best, one after the other, and end a search
_WORSE = 2
# steps of a candidate, and the nats of an entry that its last one brings
_STEPS, _RISE = 30, 1e-4
# rows on which factors converge before a few steps see all
_SAMPLE, _LAST_STEPS = 20_000, 3
# so many factors are tried at most, and a covariance for so many features; products N D^3 that one step
# of it may take while candidates are compared, while the chosen one converges, and in the end
_LARGEST, _COMPARED, _CONVERGING, _LAST = 128, 1 << 31, 1 << 33, 1 << 37

Model = TypeVar("Model", Factors, Joint)
Step = Callable[[Any, Data], tuple[Any, Tensor]]


class Choice(NamedTuple):
    """Factors of a rank; where that is None, a covariance and the share of it that is the identity."""

    rank: int | None
    share: float = 0.0


def fitted(
    data: Data,
    rank: int | None,
    groups: Tensor | None = None,
    *,
    scalar: bool,
    max_iter: int,
    tol: float,
    seed: int,
) -> Factors:
    """The factors of a table, which converge on some of its rows and end with a few steps on all.

    Args:
        data: the rows that show anything, at least one.
        rank: R; None for the choice that predicts held-out entries best.
        groups: [D] whole numbers; entries of features with the same are held out together.
        scalar: one noise variance for all features.
        max_iter: steps at most.
        tol: nats of an entry that the last step brings.
        seed: of the entries that are held out, and of the rows that stand for all.
    """
    generator = torch.Generator().manual_seed(seed)
    choice = chosen(data, scalar, generator, groups) if rank is None else Choice(rank)
    if choice.rank is not None:
        sample = _sampled(data, _SAMPLE, generator)
        step, start = _factor_step(scalar), principal(_moments(sample), choice.rank, scalar)
        found = _converged(step, start, sample, max_iter, tol)
        return _converged(step, found, data, min(max_iter, _LAST_STEPS), tol)
    cost = len(data.centre) ** 3
    sample = _sampled(data, _CONVERGING // cost, generator)
    joint = _converged(_joint_step(choice.share), _moments(sample), sample, max_iter, tol)
    last = _sampled(data, _LAST // cost, generator)
    if last.num_rows > sample.num_rows:
        steps = min(max_iter, _LAST_STEPS, _LAST // (cost * last.num_rows))
        joint = _converged(_joint_step(choice.share), joint, last, steps, tol)
    return joint.factors()


def chosen(
    data: Data, scalar: bool, generator: torch.Generator, groups: Tensor | None = None
) -> Choice:
    """What predicts entries best that are held out of the observed ones."""
    features = len(data.centre)
    size = max(_FEWEST, min(_MOST, _ENTRIES // features))
    if features <= _LARGEST:
        size = min(size, _COMPARED // features**3)
    sample = _standardized(_sampled(data, size, generator))
    tables = list(_held_out(sample, generator, groups))
    if not tables:
        return Choice(0)
    ranks = [0, *(1 << power for power in range(features.bit_length()))]
    most = min(features - 1, tables[0].data.num_rows - 1, _LARGEST)
    ranks = [rank for rank in ranks if rank <= most]
    starts = [_moments(table.data) for table in tables]

    def factors(rank: float, place: int) -> Factors:
        start = principal(starts[place], int(rank), scalar)
        return _converged(_factor_step(scalar), start, tables[place].data, _STEPS, _RISE)

    def joint(share: float, place: int) -> Joint:
        # starts where that with a larger share has ended
        step, table = _joint_step(share), tables[place].data
        starts[place] = _converged(step, starts[place], table, _STEPS, _RISE)
        return starts[place]

    rank, error = _best(ranks, tables, factors)
    if features > _LARGEST:
        return Choice(int(rank))
    share, lowest = _best(_SHARES, tables, joint)
    return Choice(None, share) if lowest < error else Choice(int(rank))


def _best(
    candidates: Sequence[float],
    tables: list[_HeldOut],
    fit: Callable[[float, int], Factors | Joint],
) -> tuple[float, float]:
    """The candidate with the least squared error of what is held out, and that error."""
    errors: list[float] = []
    for candidate in candidates:
        errors.append(sum(table.error(fit(candidate, place)) for place, table in enumerate(tables)))
        if len(errors) - errors.index(min(errors)) > _WORSE:
            break
    return candidates[errors.index(min(errors))], min(errors)


class _HeldOut(NamedTuple):
    """A table without some of its entries, and the whole one; both in units of the spreads."""

    data: Data
    whole: Data

    def error(self, model: Factors | Joint) -> float:
        """The sum of the squared errors of what is held out."""
        total, entries = 0.0, len(model.bias) ** 2
        for shown, all_of_it in zip(
            self.data.blocks(entries), self.whole.blocks(entries), strict=True
        ):
            hidden = all_of_it.known - shown.known
            total += float(((model.predicted(shown) - all_of_it.x) * hidden).square().sum())
        return total


def _held_out(whole: Data, generator: torch.Generator, groups: Tensor | None) -> Iterator[_HeldOut]:
    """Tables that lack some entries each; none where there are too few to lack any."""
    known = ~torch.isnan(whole.x)
    number = min(_TABLES, -(-_ENOUGH // max(1, int(_HELD_OUT * int(known.sum())))))
    for _ in range(number):
        drawn = torch.rand(known.shape, generator=generator, device="cpu") < _HELD_OUT
        drawn = drawn.to(known.device)
        if groups is not None:
            # there are no more groups than features
            drawn = drawn[:, groups.to(known.device)]
        if bool((known & drawn).any()):
            yield _HeldOut(replace(whole, x=whole.x.masked_fill(drawn, torch.nan)), whole)


def _sampled(data: Data, size: int, generator: torch.Generator) -> Data:
    """Some of the rows, in float64 and standardised, in their order; all are left as they are."""
    if size >= data.num_rows:
        return data
    order = torch.randperm(data.num_rows, generator=generator, device="cpu")
    drawn = order[:size].sort()[0].to(data.x.device)
    return _standardized(replace(data, order=drawn if data.order is None else data.order[drawn]))


def _standardized(data: Data) -> Data:
    """The rows that count, in float64, NaN where missing, in units of the spreads."""
    rows = [torch.where(rows.known > 0, rows.x, torch.nan) for rows in data.blocks(0)]
    return Data(torch.cat(rows), None, torch.zeros_like(data.centre), torch.ones_like(data.spread))


def _factor_step(scalar: bool) -> Step:
    """A step of the factors, under the ridge that all have."""
    return lambda model, data: factor_step(model, data, ridge=_RIDGE, floor=_FLOOR, scalar=scalar)


def _joint_step(share: float) -> Step:
    """A step of a covariance of which a share is the identity."""
    pseudo = share / (1.0 - share)
    return lambda model, data: joint_step(model, data, ridge=pseudo * data.num_rows)


def _converged(step: Step, model: Model, data: Data, steps: int, rise: float) -> Model:
    """The model after some steps; after fewer, where one brings an entry less than so many nats."""
    before = -math.inf
    for _ in range(steps):
        following, log_prob = step(model, data)
        if float(log_prob) - before < rise * data.num_rows * len(data.centre):
            break
        model, before = following, float(log_prob)
    return model


def _moments(data: Data) -> Joint:
    """Mean and covariance of the pairs of entries that are observed, made positive definite."""
    features = len(data.centre)
    both, product = data.centre.new_zeros(2, features, features)
    for rows in data.blocks(features):
        both.addmm_(rows.known.T, rows.known)
        product.addmm_(rows.x.T, rows.x)
    covariance = product / both.clamp_min(1.0)
    values, vectors = torch.linalg.eigh(covariance)
    covariance = (vectors * values.clamp_min(_FLOOR)) @ vectors.T
    return Joint(data.centre.new_zeros(features), covariance)


def principal(joint: Joint, rank: int, scalar: bool) -> Factors:
    """Factors along the leading axes of a covariance; those past its number of axes are 0."""
    covariance = joint.covariance
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    left = values[rank:] if rank < len(values) else 0.5 * values[-1:]
    weight = covariance.new_zeros(len(values), rank)
    axes = min(rank, len(values))
    strength = (values[:axes] - left.mean()).clamp_min(0.0)
    weight[:, :axes] = vectors[:, :axes] * strength.sqrt()
    noise = left.mean().expand(len(values))
    if not scalar:
        explained = weight.square().sum(1)
        noise = torch.maximum(covariance.diagonal() - explained, 0.1 * noise)
    return Factors(joint.bias, weight, noise)
