"""Mirror journals to MLflow, read studies from it, serve its UI."""
