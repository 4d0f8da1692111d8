"""Expectation maximisation for linear-Gaussian models of tables with missing entries, in closed form.

Two parametrisations of one family, x = b + N(0, S) with the missing entries marginalised out:

    factors       S = W W^T + diag(psi), W [D, R]: a step costs N R^2 (D + R)
    covariance    S [D, D] as it is: a step costs N D^3

Both maximise a penalised likelihood, and no step makes it smaller:

    factors       log p(x) - w / 2 sum_d |W_d|^2 / psi_d - 1 / 2 sum_d (log psi_d + s / psi_d)
    covariance    log p(x) - k / 2 (log |S| + tr(S^-1))

A step of the factors ends with that of an expanded model, whose latents are N(mu, Sigma): mu and Sigma
have their maximum in closed form, and are taken into b and W (PX-EM). It saves most of the steps that
EM needs where noise is small, and leaves W on its principal axes.

Source:
    Rubin and Thayer, EM algorithms for ML factor analysis, 1982; Tipping and Bishop, Probabilistic
    principal component analysis, 1999; Liu, Rubin and Wu, Parameter expansion to accelerate EM, 1998.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .linear_rows import Data, Rows, patterns

# of a bias, in rows: that of a feature that no row shows stays where it is
_TINY = 1e-9


class Factors(NamedTuple):
    """N(bias, weight weight^T + diag(noise)): [D], [D, R], and variances [D], float64."""

    bias: Tensor
    weight: Tensor
    noise: Tensor

    def predicted(self, rows: Rows) -> Tensor:
        """The expected entries [B, D], given those observed."""
        return latents(self, rows).mean @ self.weight.T + self.bias


class Joint(NamedTuple):
    """N(bias, covariance): [D], [D, D], float64."""

    bias: Tensor
    covariance: Tensor

    def predicted(self, rows: Rows) -> Tensor:
        """The expected entries [B, D], given those observed."""
        return gains(self, rows).weights @ self.covariance + self.bias

    def factors(self) -> Factors:
        """The same distribution by D - 1 factors and one noise variance, the smallest eigenvalue."""
        values, vectors = torch.linalg.eigh(self.covariance)
        weight = vectors * (values - values[0]).clamp_min(0.0).sqrt()
        return Factors(self.bias, weight[:, 1:].flip(1), values[:1].expand(len(values)))


class Posterior(NamedTuple):
    """Of the latents of rows: mean [B, R], covariance [B, R, R], and log p(x) [B]."""

    mean: Tensor
    covariance: Tensor
    log_prob: Tensor


def latents(model: Factors, rows: Rows) -> Posterior:
    """The posterior of z of rows, and the likelihood of what is observed in them."""
    bias, weight, noise = model
    rank = weight.shape[1]
    scaled = weight / noise[:, None]
    seen, place, _ = patterns(rows.known)
    row, column = torch.tril_indices(rank, rank, device=weight.device)
    # the lower half is what the decomposition reads
    precision = weight.new_zeros(len(seen), rank, rank)
    precision[:, row, column] = seen @ (weight[:, row] * scaled[:, column])
    precision.diagonal(dim1=1, dim2=2).add_(1.0)
    lower = torch.linalg.cholesky_ex(precision)[0]
    covariance = torch.cholesky_inverse(lower)
    log_volume = lower.diagonal(dim1=1, dim2=2).log().sum(1)
    if place is not None:
        covariance, log_volume = covariance[place], log_volume[place]
    deviation = rows.x - bias * rows.known
    pulled = deviation @ scaled
    mean = (covariance @ pulled[:, :, None])[:, :, 0]
    squares = deviation.square() @ (1.0 / noise) - (pulled * mean).sum(1)
    constant = rows.known @ (noise.log() + math.log(2 * math.pi))
    return Posterior(mean, covariance, -0.5 * (squares + constant) - log_volume)


def factor_step(
    model: Factors, data: Data, *, ridge: float, floor: float, scalar: bool
) -> tuple[Factors, Tensor]:
    """A step of PX-EM, and the penalised likelihood before it.

    Args:
        model: where the step starts.
        data: the rows.
        ridge: w, pseudo-rows of weights that are 0.
        floor: s, the variance that one pseudo-entry of noise has.
        scalar: one noise variance for all features.
    """
    bias, weight, noise = model
    rows, found = data.num_rows, _expected(model, data)
    design = _bordered(found.pairs, found.singles, found.number)
    target = torch.cat([found.cross, found.total[:, None]], 1)
    pull = weight.new_full((weight.shape[1] + 1,), ridge)
    pull[-1] = _TINY
    solved = torch.linalg.solve(design + pull.diag(), target[:, :, None])[:, :, 0]
    explained = 2 * target - (design @ solved[:, :, None])[:, :, 0]
    left = (found.square - (explained * solved).sum(1)).clamp_min(0.0)
    left = left + ridge * solved[:, :-1].square().sum(1)
    if scalar:
        noise = ((left.sum() + floor) / (found.number.sum() + 1.0)).expand(len(bias))
    else:
        noise = (left + floor) / (found.number + 1.0)
    step = Factors(bias + solved[:, -1], solved[:, :-1], noise)
    stepped = _reduced(step, found.first / rows, found.second / rows, ridge / rows)
    return stepped, found.log_prob + _penalty(model, ridge, floor, scalar)


class _Sums(NamedTuple):
    """Over rows, of latents z and deviations r from the bias; by feature, over those that show it."""

    pairs: Tensor  # E z z^T [D, R, R]
    singles: Tensor  # E z [D, R]
    cross: Tensor  # r E z [D, R]
    number: Tensor  # 1 [D]
    total: Tensor  # r [D]
    square: Tensor  # r^2 [D]
    second: Tensor  # E z z^T [R, R]
    first: Tensor  # E z [R]
    log_prob: Tensor  # []


def _expected(model: Factors, data: Data) -> _Sums:
    bias, weight, _ = model
    features, rank = weight.shape
    row, column = torch.tril_indices(rank, rank, device=weight.device)
    pairs, second = weight.new_zeros(features, len(row)), weight.new_zeros(len(row))
    singles, cross = weight.new_zeros(2, features, rank)
    count, total, square = weight.new_zeros(3, features)
    first, log_prob = weight.new_zeros(rank), weight.new_zeros(())
    for rows in data.blocks(max(rank * rank, features)):
        found = latents(model, rows)
        deviation, mean = rows.x - bias * rows.known, found.mean
        moments = found.covariance[:, row, column] + mean[:, row] * mean[:, column]
        pairs.addmm_(rows.known.T, moments)
        singles.addmm_(rows.known.T, mean)
        cross.addmm_(deviation.T, mean)
        count += rows.known.sum(0)
        total += deviation.sum(0)
        square += deviation.square().sum(0)
        second += moments.sum(0)
        first += mean.sum(0)
        log_prob += found.log_prob.sum()
    whole = [_symmetric(packed, rank) for packed in (pairs, second)]
    return _Sums(whole[0], singles, cross, count, total, square, whole[1], first, log_prob)


def _symmetric(packed: Tensor, rank: int) -> Tensor:
    """[..., R, R] of lower halves [..., R (R + 1) / 2]."""
    row, column = torch.tril_indices(rank, rank, device=packed.device)
    whole = packed.new_empty(*packed.shape[:-1], rank, rank)
    whole[..., row, column] = whole[..., column, row] = packed
    return whole


def _penalty(model: Factors, ridge: float, floor: float, scalar: bool) -> Tensor:
    """What is added to the likelihood that the factors maximise."""
    noise = model.noise[:1] if scalar else model.noise
    pull = ridge * (model.weight.square().sum(1) / model.noise).sum()
    return -0.5 * (pull + (noise.log() + floor / noise).sum())


def _bordered(pairs: Tensor, singles: Tensor, count: Tensor) -> Tensor:
    """Moments [D, R + 1, R + 1] of latents with a 1 behind them."""
    right = torch.cat([singles, count[:, None]], 1)
    upper = torch.cat([pairs, singles[:, :, None]], 2)
    return torch.cat([upper, right[:, None, :]], 1)


def _reduced(model: Factors, mean: Tensor, moments: Tensor, ridge: float) -> Factors:
    """The model with latents N(0, I) that is the one with latents of these moments, on its axes.

    Of the latents' covariance V the ridge leaves the maximum of -log |V| - tr(V^-1 C) - w tr(V P),
    with C that of the moments and P = W^T psi^-1 W: V^-1 C V^-1 = V^-1 + w P, which in the axes of
    C^1/2 P C^1/2 are equations in single numbers.
    """
    bias, weight, noise = model
    if not weight.shape[1]:
        return model
    values, vectors = torch.linalg.eigh(moments - mean[:, None] * mean)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    inside = root @ (weight.T @ (weight / noise[:, None])) @ root
    strength, axes = torch.linalg.eigh(0.5 * (inside + inside.T))
    shrunk = 2.0 / (1.0 + (1.0 + 4.0 * ridge * strength.clamp_min(0.0)).sqrt())
    turned = (root @ axes * shrunk.sqrt()).flip(1)
    return Factors(bias + weight @ mean, weight @ turned, noise)


def joint_step(model: Joint, data: Data, *, ridge: float) -> tuple[Joint, Tensor]:
    """A step of EM of the covariance, and the penalised likelihood before it.

    Args:
        model: where the step starts.
        data: the rows.
        ridge: k, pseudo-rows whose covariance is the identity.
    """
    bias, covariance = model
    outer, gain = covariance.new_zeros(2, *covariance.shape)
    pull, log_prob = torch.zeros_like(bias), bias.new_zeros(())
    for rows in data.blocks(len(bias) ** 2):
        found = gains(model, rows)
        outer.addmm_(found.weights.T, found.weights)
        gain += found.gain
        pull += found.weights.sum(0)
        log_prob += found.log_prob
    lower = torch.linalg.cholesky_ex(covariance)[0]
    trace = torch.cholesky_inverse(lower).diagonal().sum()
    penalty = -ridge * (lower.diagonal().log().sum() + 0.5 * trace)
    moved = covariance @ pull / data.num_rows
    scatter = data.num_rows * (covariance - moved[:, None] * moved)
    scatter = scatter + covariance @ (outer - gain) @ covariance
    scatter.diagonal().add_(ridge)
    stepped = 0.5 * (scatter + scatter.T) / (data.num_rows + ridge)
    return Joint(bias + moved, stepped), log_prob + penalty


class Gains(NamedTuple):
    """G_i, the inverse of the covariance of what row i shows, with zeros where it shows nothing.

    Attributes:
        weights: G_i (x_i - bias) [B, D].
        gain: sum of G_i [D, D].
        log_prob: sum of log p(x_i) [].
    """

    weights: Tensor
    gain: Tensor
    log_prob: Tensor


def gains(model: Joint, rows: Rows) -> Gains:
    """What EM has to know of rows under a covariance S.

    It inverts matrices of what rows show, S_oo; or, where they show more than half, of what they do not:
    with P = S^-1

        G = P - P_:m P_mm^-1 P_m:,    log |S_oo| = log |S| + log |P_mm|
    """
    bias, covariance = model
    deviation = rows.x - bias * rows.known
    seen, place, times = patterns(rows.known)
    dense = 2 * int(seen.sum()) > seen.numel()
    lower = torch.linalg.cholesky_ex(covariance)[0]
    matrix = torch.cholesky_inverse(lower) if dense else covariance
    index, inverse, log_volume = _inverted(matrix, seen == 0 if dense else seen > 0)
    flat = index[:, :, None] * len(bias) + index[:, None, :]
    summed = torch.zeros_like(covariance)
    summed.view(-1).index_add_(0, flat.flatten(), (inverse * times[:, None, None]).flatten())
    if place is not None:
        index, inverse, log_volume = index[place], inverse[place], log_volume[place]
    pulled = deviation @ matrix if dense else deviation
    within = (inverse @ pulled.gather(1, index)[:, :, None])[:, :, 0]
    # places past the number of entries have zeros, whatever entry they name
    weights = torch.zeros_like(deviation).scatter_add_(1, index, within)
    half = log_volume.sum()
    if dense:
        weights = (pulled - weights @ matrix) * rows.known
        summed = len(deviation) * matrix - matrix @ summed @ matrix
        half = half + len(deviation) * lower.diagonal().log().sum()
    constant = rows.known.sum() * math.log(2 * math.pi)
    return Gains(weights, summed, -0.5 * ((weights * deviation).sum() + constant) - half)


def _inverted(matrix: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverses of the parts of a matrix [D, D] that bool [U, D] marks, as large as the largest, M.

    Returns:
        Their entries [U, M]; the inverses [U, M, M], 0 past the number of entries; and half the
        logarithms of the determinants [U].
    """
    count = marks.sum(1)
    size = max(1, int(count.max()))
    index = marks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
    past = torch.arange(size, device=count.device) >= count[:, None]
    part = matrix[index[:, :, None], index[:, None, :]]
    part.masked_fill_(past[:, :, None] | past[:, None, :], 0.0)
    ones = past.to(part.dtype)
    part.diagonal(dim1=1, dim2=2).add_(ones)
    lower = torch.linalg.cholesky_ex(part)[0]
    inverse = torch.cholesky_inverse(lower)
    inverse.diagonal(dim1=1, dim2=2).sub_(ones)
    return index, inverse, lower.diagonal(dim1=1, dim2=2).log().sum(1)
