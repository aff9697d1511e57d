"""Render an analysis as HTML, Markdown, CSV, JSON, PNG or a terminal table."""
