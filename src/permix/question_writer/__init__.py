"""PersonaGym: questions that each persona is asked alone, read, written anew for other personas, and its published files."""
