"""Commands that need several layers: train, fidelity with its judges, quickstart, preflight checks."""
