"""The load: its processes, one round with them, and whose limit a round showed."""
