"""What tests stand on: servers that they start, sockets that they use, bounds on time."""
