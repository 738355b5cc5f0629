"""Experiments that compare servers."""
