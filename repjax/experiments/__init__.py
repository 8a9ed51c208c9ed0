"""Wiring shared by recipes: a method and its data become an `Experiment`."""
