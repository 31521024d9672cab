"""Datasets of expert episodes: their layout on disk, as published, and how they are collected."""

from .columns import check_columns, check_episode, task_columns, task_features

__all__ = ["check_columns", "check_episode", "task_columns", "task_features"]
