"""Measures of collected features and pixels: plain functions of arrays."""
