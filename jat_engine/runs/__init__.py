"""Evaluation runs: episodes of many tasks at once, kept in a database as they end, and everything made from it."""
