"""The code that runs inside the sandbox. It imports only the standard library and itself, since nothing else exists there."""
