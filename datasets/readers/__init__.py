"""Readers of published files, one a module: `open_source(path, *, ...options) -> Source`."""
