"""Host side: time series become rows of windows."""
