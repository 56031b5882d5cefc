"""Who reads a run's events and a verb's results, and shows them? Whatever is printed, its lines are broken as breaks.py says."""

from lorafit.reporters.terminal.line_wrap import teach_rich

teach_rich()
