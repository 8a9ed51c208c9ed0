"""Host side: a trained model as files that other programs read."""
