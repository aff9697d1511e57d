"""Store a study on disk or on an object store."""
