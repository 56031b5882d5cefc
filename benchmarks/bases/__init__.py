"""Modules that benchmarks/quantised.py runs as processes of their own."""
