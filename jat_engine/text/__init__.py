"""Texts: what is written, scored and streamed by an engine, in batches that requests join and leave."""
