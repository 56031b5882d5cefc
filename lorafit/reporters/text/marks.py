"""The marks at the beginning of the plan's sentences."""

SENTENCE_MARKS = ("✓", "⚠", "✗")  # a text that begins with one of these is a complete sentence
LEADING = "✓⚠️ "  # the characters to strip where a table shows the sentence
