"""The race, a speed comparison: its task, contestants, rounds, results and figures."""
