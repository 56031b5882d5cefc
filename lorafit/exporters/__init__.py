"""Exports of a trained model: its files in the formats of other programs."""
