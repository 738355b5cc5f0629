"""From a configuration to an exit code, in one process or in several."""
