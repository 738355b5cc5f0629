"""What is said about the server: log, counters, scoreboard, access log, and metrics."""
