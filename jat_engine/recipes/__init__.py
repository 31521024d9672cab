"""Recipes of the checkpoints that this package ships."""
