"""Gaussian-process surrogate of accuracy, acquisition function and front probabilities."""
