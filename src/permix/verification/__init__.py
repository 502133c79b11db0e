"""Check answers: mathematics by value (`math_verifier`), programs in a sandbox (`sandbox`)."""
