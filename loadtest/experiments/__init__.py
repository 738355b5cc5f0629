"""What is measured, and in which order: a comparison, a search, idle connections, a calibration."""
