"""Launchers: the only place where flags are read."""
