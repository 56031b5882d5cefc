"""The planner: memory and speed models, the search for a plan that fits, and the reasons for the user."""
