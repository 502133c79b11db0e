"""Arithmetic on scores and texts: no model, no files."""
