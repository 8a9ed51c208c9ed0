"""Host side: which rows a step sees."""
