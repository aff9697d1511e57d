"""Take trained models out of a study: load, export, verify and describe them."""
