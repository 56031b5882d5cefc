"""Tiny random models of every family that transformers has, as folders like those of a hub."""
