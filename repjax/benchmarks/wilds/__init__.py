"""Host side: WILDS and U-WILDS, real shifts between domains, in NumPy."""
