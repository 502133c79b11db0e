"""Evaluations: ask the cells of a run, store the answers, resume, and compute measures from the records."""
