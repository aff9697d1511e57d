"""MLflow: the mirror of the journal, the reader, the user interface."""
