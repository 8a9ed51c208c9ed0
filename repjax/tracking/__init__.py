"""Host side: where the numbers of a run go besides its work directory."""
