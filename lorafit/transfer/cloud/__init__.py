"""Who else has GPUs? One file a place: what it takes, ready to go."""
