"""What is asked of a model, how its answers are stored, and their summaries."""
