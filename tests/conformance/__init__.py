"""What every backend must do, through the real command line and real sockets.

``pytest tests/conformance --backend path/to/file.py:Class`` runs it against a backend of yours.
"""
