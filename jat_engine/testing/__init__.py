"""Checks of a checkpoint on a user's machine, and the recorded observations that they feed it."""
