"""Training: a plan and a model in, trained weights out."""
