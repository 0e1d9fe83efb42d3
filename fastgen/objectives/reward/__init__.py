"""Objectives that train a student by rewards of its samples."""
