"""Rules that end trials before their last epoch."""
