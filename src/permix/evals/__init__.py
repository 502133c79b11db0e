"""Evaluations: the cells that a run asks, how answers are stored and resumed, and the measures computed from them."""
