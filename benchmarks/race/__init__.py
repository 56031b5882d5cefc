"""The race: what is measured, who takes part, how the rounds go, and what the figures say."""
