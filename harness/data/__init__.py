"""Pools, queries, files, overlap, graders and the built-in testbed."""
