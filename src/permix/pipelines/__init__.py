"""Commands that need several layers: train, fidelity, judge, quickstart and check."""
