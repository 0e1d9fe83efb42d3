"""Objectives that learn the teacher's trajectories: consistency, segments, flow maps and halved steps."""
