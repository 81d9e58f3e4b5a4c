"""Runs of experiments from data to report, and sweeps of many runs."""
