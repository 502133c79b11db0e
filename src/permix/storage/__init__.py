"""Files of a run: run directory, cells, JSON Lines, atomic writes."""
