"""Device code: where a token or a patch is."""
