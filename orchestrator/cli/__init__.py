"""The `sftsearch` command line."""
