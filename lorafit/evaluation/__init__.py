"""Evaluation of an adapter: chat, comparison with the base model, validation loss and text metrics."""
