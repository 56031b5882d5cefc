"""Readers of data files, one module a family of formats."""
