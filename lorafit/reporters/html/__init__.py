"""HTML pages of a run, a comparison and a data report."""
