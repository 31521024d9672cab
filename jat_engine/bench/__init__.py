"""Benchmarks: the engine beside what a user would run instead, in one run. `jat-engine bench` runs them."""
