"""Engines, lm-eval and tasks: answers and verdicts for a checkpoint."""
