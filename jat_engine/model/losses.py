"""Losses of the RL tasks, computed in float32. Masks are 1 at valid steps.

Letters in shapes: B batch, L steps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mse_loss(predicted: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """Return sum(mask * weight * squared error) / number of valid steps; squared errors are means over features.

    Args:
        predicted: [B, L, ...].
        target: same shape as `predicted`.
        mask: [B, L], or None if all steps are valid.
        weight: [B, L], or None for ones.

    Returns:
        Scalar, float32.
    """
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none")
    loss = loss.flatten(2).mean(-1)  # [B, L]
    if mask is not None:
        loss = loss * mask
    if weight is not None:
        loss = loss * weight

    # Sequences of a single step have no next observation: the loss is 0 then, not 0 / 0.
    return loss.sum() / (mask.sum().clamp(min=1) if mask is not None else max(loss.numel(), 1))


def cross_entropy_loss(logits: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """Return the mean cross entropy over the valid steps, times the mean of their weights.

    As in the published model, a weight does not scale the term of its own step.

    Args:
        logits: [B, L, num_classes].
        target: [B, L], int64.
        mask: [B, L], or None if all steps are valid.
        weight: [B, L], or None for ones.

    Returns:
        Scalar, float32.
    """
    valid = mask.bool() if mask is not None else target == target
    loss = F.cross_entropy(logits[valid].float(), target[valid])
    return loss * weight[valid].mean() if weight is not None else loss
