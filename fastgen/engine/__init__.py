"""Turns and stages: who is trained when, by which optimizer, and how it goes on after an interruption."""
