"""Benchmarks against plain loops and other frameworks; `python -m benchmarks` runs them, README.md explains them."""
