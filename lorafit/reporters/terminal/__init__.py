"""Terminal output of events and results."""
