"""Measure: one suite per file. Each has `run(context)`, which adds rows to the results."""
