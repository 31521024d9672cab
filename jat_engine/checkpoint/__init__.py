"""Readers of checkpoints: safetensors only, checked against the configuration."""
