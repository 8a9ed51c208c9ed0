"""What `launch.benchmark` times."""
