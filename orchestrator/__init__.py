"""The search: what proposes, places, records and reports trials."""
