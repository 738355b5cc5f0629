"""What is graded: started, watched over by a keeper, looked at in /proc, and ended."""
