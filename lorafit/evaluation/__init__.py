"""Answers and scores of a model with an adapter."""
