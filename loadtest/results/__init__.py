"""What a measurement gave: one document, its statistics, its objectives."""
