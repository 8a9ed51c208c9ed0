"""Whole linen networks: import the module that you need."""
