"""Study files: schema, reader, search space, and the shipped files."""
