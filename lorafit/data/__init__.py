"""Data pipeline from files to micro-batches: sources -> readers -> formats -> render -> batching."""
