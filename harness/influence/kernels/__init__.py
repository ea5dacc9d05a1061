"""Fast matrix products, norms and attention for the influence engine."""
