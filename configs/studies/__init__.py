"""What the papers claim, measured: one file a paper (`launch.reproduce`)."""
