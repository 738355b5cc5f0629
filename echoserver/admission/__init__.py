"""From the listening socket to an admitted connection: who is accepted, when.

And who is turned away, and how.
"""
