"""`JatEngine`: run agents on a backend, with their episodes in a paged KV cache."""
