"""Planted faults and honest exports for the benchmark export_faults.py."""
