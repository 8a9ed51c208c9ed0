"""Host side: prepared sets as rows by index, without TensorFlow."""
