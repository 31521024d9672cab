"""Calibration: round a checkpoint's matrices to 4 or 8 bits such that recorded observations give the same outputs."""
