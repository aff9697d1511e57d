"""The fusion systems, one in a file."""
