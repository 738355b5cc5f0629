"""Linux features that Python does not wrap, one kernel interface per module."""
