"""Curvature of the loss: how each kind is fitted and inverted."""
