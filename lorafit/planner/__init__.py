"""What fits, and why: memory terms, and the planner that chooses by them."""
