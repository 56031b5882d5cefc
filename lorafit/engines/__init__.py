"""The muscle: the only place where tensor libraries are imported."""
