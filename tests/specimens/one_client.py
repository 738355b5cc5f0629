"""It serves its first client, and ends with it.

Fails: L2
"""

import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    client, _ = listener.accept()
    with client:
        while data := client.recv(4096):
            client.sendall(data)
