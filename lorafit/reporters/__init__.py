"""Reporters: they show or store a run's events and the results of commands.

Importing this package changes rich's line breaking (terminal/line_wrap.py) and its treatment of control characters
(terminal/console.py) for everything that is printed.
"""

from lorafit.reporters.terminal import console, line_wrap

console.patch_rich()
line_wrap.patch_rich()
