"""Limbeck's training against other trainers, in one run: ``python -m benchmarks.training``."""
