"""Wiring that more than one recipe needs."""
