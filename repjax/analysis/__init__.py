"""What can be said of data and trained networks: import what you need."""
