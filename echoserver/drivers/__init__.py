"""The ways to carry out a flow's waits: block the thread, call back, or park a greenlet."""
