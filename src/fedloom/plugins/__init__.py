"""Algorithms, data sets, metrics and model families that others add."""
