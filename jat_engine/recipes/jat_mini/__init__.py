"""The recipe of `jat-mini`: collect, train, score, export. Run it with `python -m jat_engine.recipes.jat_mini`."""
