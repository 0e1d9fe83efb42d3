"""Tables of training runs at one budget: each trained, measured by `python -m eval`, and left as a small JSON file."""
