"""What a study leaves on disk or on an object store."""
