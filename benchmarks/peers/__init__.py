"""The contestants: each file is run as a process of its own, in its own Python, and obeys peers/protocol.py."""
