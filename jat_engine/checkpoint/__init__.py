"""Read checkpoints: safetensors only, checked against the configuration."""
