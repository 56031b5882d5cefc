"""The MLX engine: Apple Silicon's GPU, and, for tests and small runs, any processor."""

from lorafit.engines.mlx.blas import load_fast_blas

load_fast_blas()  # before anything here imports MLX: it keeps the BLAS that it finds first
