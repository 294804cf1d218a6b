"""Options of a run: their text, their types, and what may not be."""
