"""Loss terms as pure functions of tensors, each with the formula that its test checks. Scalars out,
float32, no state.

Items are the second dimension from the end, so a leading dimension of folds (F, B, ...) gives one
value a fold (F,).

Targets are rows of a distribution over classes, so that hard labels (one-hot), votes, label
smoothing and mixup are one case. A row of zeros is "no target" and contributes nothing.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

CCC_GUARD = 1e-8
SEVEN_POINTS = 6.0  # from 1 to 7


# ---- class weights and priors --------------------------------------------------------------------


def class_weights(prior: Tensor, alpha: float) -> Tensor:
    """``(N / (C n_k))^alpha`` scaled so that the mean weight of a training item is 1
    (docs/methods.md 1.3).

    Args:
        prior: class shares (C,) of the training rows; alpha 0 gives ones, 1 the published weights.

    Example:
        >>> class_weights(torch.tensor([0.8, 0.2]), 1.0).tolist()
        [0.625, 2.5]
    """
    prior = prior.clamp_min(1e-6)
    weights = (prior * len(prior)).pow(-alpha)
    return weights / (prior * weights).sum()


def vector_scaling(prior: Tensor, gamma: float) -> Tensor:
    """``1 / Delta_k`` with ``Delta_k = (n_max / n_k)^gamma`` of the vector-scaling loss
    (docs/methods.md 1.3).

    Example:
        >>> vector_scaling(torch.tensor([0.8, 0.2]), 0.5).tolist()
        [1.0, 0.5]
    """
    prior = prior.clamp_min(1e-6)
    return (prior / prior.amax(-1, keepdim=True)).pow(gamma)


def adjusted_logits(logits: Tensor, prior: Tensor, *, tau: float = 0.0, gamma: float = 0.0) -> Tensor:
    """``z_k / Delta_k + tau log pi_k``: logit adjustment (gamma 0) and vector scaling (gamma .3,
    tau 1), for training only.
    """
    if gamma:
        logits = logits * vector_scaling(prior, gamma).unsqueeze(-2)
    return logits + tau * prior.clamp_min(1e-6).log().unsqueeze(-2) if tau else logits


# ---- targets -------------------------------------------------------------------------------------


def hard_targets(label: Tensor, classes: int) -> Tensor:
    """One-hot rows (B, C) of labels (B,); rows of zeros for -1.

    Example:
        >>> hard_targets(torch.tensor([1, 0]), 2).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return F.one_hot(label.clamp_min(0), classes).float() * (label >= 0).unsqueeze(-1)


def vote_targets(label: Tensor, votes: Tensor) -> Tensor:
    """Vote distributions (B, C) normalised; items without votes fall back to their hard label, if
    they have one.
    """
    total = votes.sum(-1, keepdim=True)
    return torch.where(total > 0, votes / total.clamp_min(1e-12), hard_targets(label, votes.shape[-1]))


def drop_raters(distribution: Tensor, count: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Each rater's vote is dropped with ``probability`` and the distribution recomputed
    (docs/methods.md 1.5).

    Args:
        distribution: (B, C) shares of votes. count: (B,) votes behind each row. An item that loses
            all raters keeps them all.
    """
    votes = (distribution * count.unsqueeze(1)).round()
    kept = torch.binomial(votes, torch.full_like(votes, 1 - probability), generator=generator)
    total = kept.sum(1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(1), distribution)


def smooth(targets: Tensor, epsilon: float) -> Tensor:
    """Label smoothing: ``(1 - eps) t + eps / C`` on rows that have a target.

    Example:
        >>> smooth(torch.tensor([[1.0, 0.0]]), 0.5).tolist()
        [[0.75, 0.25]]
    """
    if not epsilon:
        return targets
    return targets * (1 - epsilon) + epsilon / targets.shape[-1] * (targets.sum(-1, keepdim=True) > 0)


# ---- categorical terms ---------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, gamma: float = 0.0, divergence: bool = False
) -> Tensor:
    """Weighted (focal) cross-entropy against target rows, as a weighted mean over the items that
    have a target.

    ``sum_i sum_k w_k t_ik (1 - p_ik)^gamma (-log p_ik) / sum_i sum_k w_k t_ik``. With one-hot rows
    and gamma 0 it equals torch's weighted cross-entropy. ``divergence`` adds ``t log t``: KL(t ||
    p), zero where the prediction is the target, with the same gradient as soft cross-entropy.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    weighted = targets if weights is None else targets * weights.unsqueeze(-2)
    value = -log_p
    if divergence:
        value = value + torch.where(targets > 0, targets, 1.0).log()
    if gamma:
        # 1 - p of a sure prediction rounds to 0, and the power of 0 has an infinite slope below
        # gamma 1
        value = value * (-torch.expm1(log_p)).clamp_min(1e-6).pow(gamma)
    return (weighted * value).sum((-2, -1)) / weighted.sum((-2, -1)).clamp_min(1e-12)


def soft_macro_f1(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - mean_k 2 sum_i t_ik p_ik / sum_i (t_ik + p_ik)`` over the classes that occur among the
    targets (docs/methods.md 1.3).

    Example:
        >>> round(float(soft_macro_f1(50 * torch.eye(2), torch.eye(2))), 3)
        0.0
    """
    labelled = (targets.sum(-1, keepdim=True) > 0).float()
    p = F.softmax(logits.float(), dim=-1) * labelled
    support = targets.sum(-2)
    f1 = 2 * (p * targets).sum(-2) / (p.sum(-2) + support).clamp_min(1e-12)
    present = (support > 0).float()
    return 1 - (f1 * present).sum(-1) / present.sum(-1).clamp_min(1)


# ---- dimensional terms ---------------------------------------------------------------------------


def ccc(predicted: Tensor, target: Tensor) -> Tensor:
    """CCC per attribute (A,) over the whole batch, population moments, pairs with a NaN target left
    out (docs/methods.md 9.2).

    An attribute with fewer than two targets has CCC 0 and no gradient. Computed about the target's
    mean in float32.

    Example:
        >>> y = torch.tensor([[1.0], [2.0], [4.0]])
        >>> ccc(y, y).round(decimals=3).tolist()
        [1.0]
    """
    valid = torch.isfinite(target)
    m = valid.float()
    n = m.sum(-2, keepdim=True).clamp_min(1)
    y = torch.where(valid, target, 0.0)
    x = predicted.float() * m
    mean_x, mean_y = x.sum(-2, keepdim=True) / n, y.sum(-2, keepdim=True) / n
    dx, dy = (x - mean_x) * m, (y - mean_y) * m
    covariance = (dx * dy).sum(-2, keepdim=True) / n
    spread = ((dx * dx).sum(-2, keepdim=True) + (dy * dy).sum(-2, keepdim=True)) / n + (mean_x - mean_y) ** 2
    return torch.where(m.sum(-2) >= 2, (2 * covariance / (spread + CCC_GUARD)).squeeze(-2), 0.0)


def ccc_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 - CCC``, mean over the attributes that have at least two targets in the batch; 0 when
    none has.
    """
    present = (torch.isfinite(target).sum(-2) >= 2).float()
    return ((1 - ccc(predicted, target)) * present).sum(-1) / present.sum(-1).clamp_min(1)


def attribute_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """``36 (x - y)^2``, mean over the targets that are there: the squared error of x, y in [0, 1]
    in points of a scale of 1 to 7, which is what the published weight .4 belongs to
    (docs/methods.md 1.4); 0 when there is no target.
    """
    valid = torch.isfinite(target)
    error = torch.where(valid, predicted.float() - torch.where(valid, target, 0.0), 0.0)
    return SEVEN_POINTS**2 * (error * error).sum((-2, -1)) / valid.sum((-2, -1)).clamp_min(1)


# ---- manifold mixup ------------------------------------------------------------------------------


def mixup_draw(size: int, probability: float, alpha: float, generator: torch.Generator) -> tuple[float, Tensor] | None:
    """With ``probability`` a share from Beta(alpha, alpha) and a permutation (B,) of the batch,
    else None (docs/methods.md 1.5).
    """
    if not probability:
        return None
    chance = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    if chance.random() >= probability:
        return None
    return chance.betavariate(alpha, alpha), torch.randperm(size, generator=generator)


def mix(values: Tensor, share: float, order: Tensor) -> Tensor:
    """``share v + (1 - share) v[order]``: of hidden vectors and of their targets alike.

    Example:
        >>> mix(torch.tensor([0.0, 1.0]), 0.75, torch.tensor([1, 0])).tolist()
        [0.25, 0.75]
    """
    return torch.lerp(values[order], values, share)


def device_generator(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on ``device`` that follows from a draw of ``generator`` (which lives on the CPU);
    itself on the CPU.
    """
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
