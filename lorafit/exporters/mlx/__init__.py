"""Exports for MLX: whole models in mlx_lm's layout, and adapters as mlx-lm reads them."""
