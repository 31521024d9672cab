"""Benchmarks of the engine, measured in one run with what a user would run instead. `jat-engine bench` runs them."""
