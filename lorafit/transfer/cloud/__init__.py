"""Cloud platforms: one module per platform, which writes the files that the platform needs to train a run."""
