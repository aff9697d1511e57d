"""Valid names of studies, which are also names of folders and of MLflow experiments."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
"""1 to 64 lower-case letters, digits, `-` or `_`, the first a letter or digit."""
