"""Moving a run to another machine and back: bundles, archives, fetching."""
