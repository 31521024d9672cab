"""One file a suite: each has `run(context)`, which adds rows to the results."""
