"""The fusion models, one in a file."""
