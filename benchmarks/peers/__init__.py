"""The contestants: each file runs as a process of its own, in its own Python, and follows peers/protocol.py."""
