"""Host side: what happens to images between the set and the network."""
