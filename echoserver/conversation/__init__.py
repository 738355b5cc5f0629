"""One client: its bytes answered in order, and a close that loses nothing.

A child that the backend `process` forks needs no more than this.
"""
