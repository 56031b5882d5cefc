"""Checks of `lorafit doctor`: whether this machine can train, and fixes. One module per subject, run by examine.py."""
