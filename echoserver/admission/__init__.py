"""From the listening socket to an admitted connection.

This package decides which clients are accepted, and when, and how the others are turned away.
"""
