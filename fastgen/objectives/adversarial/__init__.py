"""Objectives whose generator learns from a discriminator, without a fake score."""
