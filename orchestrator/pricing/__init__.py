"""Costs of a whole space, and the papers' tables beside ours."""
