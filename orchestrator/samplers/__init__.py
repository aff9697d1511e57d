"""Propose the next configuration of a study."""
