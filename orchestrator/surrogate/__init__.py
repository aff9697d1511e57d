"""A Gaussian process of accuracy, and what follows from it."""
