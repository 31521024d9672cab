"""`JatModel` in plain PyTorch: the published computation, for training, text and as the reference of engines."""
