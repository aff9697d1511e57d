"""Numbers for reports: the front, families, routes, importance, comparisons."""
