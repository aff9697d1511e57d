"""Trials on Ray: placement, worker processes, interrupts."""
