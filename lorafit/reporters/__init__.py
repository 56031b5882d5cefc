"""Who reads a run's events? Each reader has `see(event)` and `close()`."""
