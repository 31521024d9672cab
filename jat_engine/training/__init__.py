"""Train a `JatModel` by the published recipe: episodes -> segments -> batches of one task -> transformers' Trainer.

Needs the extra `train`.
"""
