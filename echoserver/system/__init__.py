"""What Linux offers and Python does not wrap: one kernel interface a file."""
