"""Check answers: mathematical expressions with a symbolic engine in worker processes, programs in a sandbox."""
