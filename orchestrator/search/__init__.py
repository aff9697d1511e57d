"""The decisions of a study, each an event of its journal."""
