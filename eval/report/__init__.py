"""Rows, assertions and pictures of a report."""
