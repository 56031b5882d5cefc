"""Transfer of a run to another machine and back: bundles, archives, cloud platforms, fetching."""
