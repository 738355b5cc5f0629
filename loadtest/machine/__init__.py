"""What is watched on this machine, and what may be used of it."""
