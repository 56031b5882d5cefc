"""Faults for benchmarks/chaos.py: a training to disturb, what can happen to it, and what must come of it."""
