"""It serves one client at a time, to its end.

Fails: N1 N2 N3 N4 N6
"""

import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        client, _ = listener.accept()
        with client:
            try:
                while data := client.recv(4096):
                    client.sendall(data)
            except OSError:
                pass
