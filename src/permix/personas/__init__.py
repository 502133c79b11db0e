"""Persona pools: loaded, checked, split."""
