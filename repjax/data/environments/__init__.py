"""Worlds to act in: import the one that you need."""
