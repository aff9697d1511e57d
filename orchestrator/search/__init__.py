"""Decide what a study trains; each decision is an event in its journal."""
