"""The PyTorch engine: CUDA, Apple's MPS, CPU."""
