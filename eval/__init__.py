"""Evaluation of image generators: `python -m eval`, or `fastgen eval`."""
