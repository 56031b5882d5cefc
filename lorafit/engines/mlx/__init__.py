"""The MLX engine: for the GPU of Apple Silicon, and for any CPU in tests and small runs."""

from lorafit.engines.mlx.blas import load_fast_blas

load_fast_blas()  # before any import of MLX, which keeps the first BLAS that it finds
