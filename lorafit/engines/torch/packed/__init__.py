"""The fast path: dense decoders of Llama's architecture with lorafit's own packed forward and backward."""
