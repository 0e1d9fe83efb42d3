"""Objectives that regress a known target: images, pairs, or what guidance makes of two predictions."""
