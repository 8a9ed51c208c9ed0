"""Device code: attention in time linear in the length, by features of keys."""
