"""The parts of benchmarks/cuda.py: what one GPU computes rightly, how fast, and in how much memory."""
