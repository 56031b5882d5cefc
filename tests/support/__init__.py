"""Helpers that several test modules share: models, plans, machines, runs, servers and worker scripts."""
