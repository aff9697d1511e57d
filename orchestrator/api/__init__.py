"""The Python API: what `sftsearch.api` (the folder `public`) exports."""
