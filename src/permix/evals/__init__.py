"""Evaluations: which cells a run asks, how answers are stored and resumed, and what is measured from them."""
