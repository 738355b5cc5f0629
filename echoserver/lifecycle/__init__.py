"""A process's life from start to end: its signals, its state, and the main flow's one wait."""
