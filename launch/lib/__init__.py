"""What the launchers share."""
