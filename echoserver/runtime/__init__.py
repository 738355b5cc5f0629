"""Running a server from its configuration to its exit code, in one process or in several."""
