"""Write and check datasets of expert episodes in the published layout: schema, Parquet files, data card, hub."""
