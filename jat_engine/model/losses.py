"""The two losses of the RL tasks. Masks are 1 at valid steps; both are computed in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mse_loss(predicted: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """Squared error, averaged over features, times mask and weight, over the number of valid steps.

    Args:
        predicted, target: [B, L, ...], same shape.
        mask: [B, L] or None for all valid.
        weight: [B, L] or None for ones.

    Returns:
        Scalar, float32.
    """
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none")
    loss = loss.flatten(2).mean(-1)  # [B, L]
    if mask is not None:
        loss = loss * mask
    if weight is not None:
        loss = loss * weight
    # Sequences of a single step have no next observation: no loss, rather than 0 / 0.
    return loss.sum() / (mask.sum().clamp(min=1) if mask is not None else max(loss.numel(), 1))


def cross_entropy_loss(logits: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """Mean cross entropy over the valid steps, times the mean of their weights (published: the weights do not
    scale each step's own term).

    Args:
        logits: [B, L, num_classes].
        target: [B, L], int64.
        mask: [B, L] or None for all valid.
        weight: [B, L] or None for ones.

    Returns:
        Scalar, float32.
    """
    valid = mask.bool() if mask is not None else target == target
    loss = F.cross_entropy(logits[valid].float(), target[valid])
    return loss * weight[valid].mean() if weight is not None else loss
