"""Protocols that compare methods: grids and sequences of fits."""
