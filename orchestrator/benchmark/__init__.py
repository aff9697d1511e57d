"""Benchmark searches on recorded tables: record, simulate, compute the regret."""
