"""Influence held against retraining."""
