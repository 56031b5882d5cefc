"""The processes that benchmarks/quantised.py measures."""
