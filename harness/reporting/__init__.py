"""Tables, figures, pages and comparisons from records alone; no torch."""
