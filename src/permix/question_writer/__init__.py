"""Write PersonaGym questions for new personas with a model: requests, parsing of the replies, and the command."""
