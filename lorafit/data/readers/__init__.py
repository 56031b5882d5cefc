"""Readers of data files, one module per family of file types."""
