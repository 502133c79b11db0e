"""Persona pools (load, check, split) and PersonaGym's data."""
