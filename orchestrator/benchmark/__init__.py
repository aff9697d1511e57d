"""Searches measured on recorded tables: record, replay, regret."""
