"""Host side: sets of our own, embedded or generated."""
