"""Flags and settings files of other fine-tuning tools: their names, and what they are here."""
