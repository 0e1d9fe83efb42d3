"""A run, typed, and how it is read."""
