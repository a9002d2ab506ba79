"""Scores, latency and comparisons of base and tuned models."""
