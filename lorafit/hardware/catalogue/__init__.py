"""Figures of known machines, models and data sets, each with its source, for plans without these at hand."""
