"""Gradient checkpointing under the names that versions of transformers give it."""

from __future__ import annotations

from jat_engine import JatModel


def enable_checkpointing(model: JatModel) -> None:
    """Compute activations again in the backward pass. transformers 5.23 renamed the method; the old name warns."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
