"""Recipes that make the checkpoints this package ships."""
