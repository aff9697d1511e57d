"""Fusion models, one family per file."""
