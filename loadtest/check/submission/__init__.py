"""The server to grade: started, supervised by a keeper, observed in /proc, and ended."""
