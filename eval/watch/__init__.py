"""A run as its files tell it, while it trains and afterwards: read, drawn as curves, served as a page."""
