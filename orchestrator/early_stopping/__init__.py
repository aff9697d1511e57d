"""Stop trials before their last epoch."""
