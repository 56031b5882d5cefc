"""Several processes as one run: launching them, and the collectives they need."""
