"""How to learn: `make(...)` -> `repjax.types.Method`."""
