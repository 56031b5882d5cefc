"""Training: the loop, the worker process around it, preflight and resume."""
