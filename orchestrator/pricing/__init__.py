"""Price a search space, and compare costs with the tables of papers."""
