"""One config a paper: `get_config(preset)` and `build(config)`."""
