"""A run on disk: its folder, checkpoints, adapter and history."""
