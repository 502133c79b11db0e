"""Judges: what they are asked, what they said, what that is worth."""
