"""Faults for benchmarks/chaos.py: a training run to disturb, the faults, and the checks of the result."""
