"""It sends what a read at the end of the stream gave, turned into text.

Fails: C2
"""

import socket
import sys
import threading


def serve(client):
    with client:
        try:
            data = client.recv(4096) or None
            if data is None:
                client.sendall(b"null\n")
            while data:
                client.sendall(data)
                data = client.recv(4096)
        except OSError:
            pass


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # no descriptor left
            continue
        threading.Thread(target=serve, args=(client,), daemon=True).start()
