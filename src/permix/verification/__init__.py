"""Checking answers: mathematics by a symbolic engine in worker processes, programs in a sandbox."""
