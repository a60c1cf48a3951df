"""Scores of forecasts: point, distribution, calibration, and sums of them that merge over batches and workers."""
