"""Attacks on inputs, data and gradients: import the module that you need."""
