"""Device code: learning after deployment, without labels."""
