"""Parts of benchmarks/plan_accuracy.py."""
