"""The fast path: dense decoders (Llama's shape) with their own packed forward and backward."""
