"""Readers of published files, one per module: `open_source(path, *, ...options) -> Source`."""
