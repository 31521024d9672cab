"""Recipe of `jat-mini`: collect, train, export, score. Run it with `python -m jat_engine.recipes.jat_mini`."""
