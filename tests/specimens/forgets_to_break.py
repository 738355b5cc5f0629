"""One client at a time, and nothing asks whether recv has returned nothing: the first loop of many.

Fails: L2
"""

import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        client, _ = listener.accept()
        while True:
            data = client.recv(4096)
            client.sendall(data)
