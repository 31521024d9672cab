"""`JatModel` in plain PyTorch: the published computation. It trains, writes text and is the reference for engines."""
