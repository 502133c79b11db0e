"""Commands that need several layers: train, fidelity, judge, quickstart, study and check."""
