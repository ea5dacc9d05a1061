"""Speed of the influence engine beside kronfluence and bergson on the same model and data."""
