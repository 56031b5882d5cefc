"""Reporters: they show or store a run's events and the results of commands.

Importing this package changes rich's line breaking for everything that is printed (terminal/line_wrap.py).
"""

from lorafit.reporters.terminal.line_wrap import patch_rich

patch_rich()
