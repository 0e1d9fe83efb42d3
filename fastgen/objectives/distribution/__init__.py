"""Objectives that match distributions: the scores of generated samples against the teacher's."""
