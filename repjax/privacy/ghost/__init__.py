"""The inside of ghost clipping; `privacy.clipping` is its door."""
