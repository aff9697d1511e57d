"""The `sftsearch` command: parse, call one function, print, exit code."""
