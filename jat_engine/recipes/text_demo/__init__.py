"""Recipe of a small model that writes verses and describes pictures of BabyAI rooms, to show texts in the engine."""
