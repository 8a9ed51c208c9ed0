"""Host side: texts become rows of tokens."""
