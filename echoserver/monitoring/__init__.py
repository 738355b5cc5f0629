"""What the server reports about itself: log, counters, scoreboard, access log, and metrics."""
