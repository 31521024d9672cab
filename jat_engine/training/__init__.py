"""Training a `JatModel` as the published one was: episodes -> pieces -> batches of one task -> transformers' Trainer.

Needs the extra `train`; nothing outside this folder imports it.
"""
