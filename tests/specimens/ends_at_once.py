"""It ends with an exception before it listens.

Fails: L1
"""

import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", sys.argv[1]))
