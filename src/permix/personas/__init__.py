"""Load, check and split persona pools, and read PersonaGym's data."""
