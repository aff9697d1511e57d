"""Study files: their types, how they are read, and the ones that ship."""
