"""One recv is taken for the whole message, and the connection is closed after it.

Fails: S1 S2 S3 S5 S6 C1 C5 N2 N3 N4 N6 N7
"""

import socket
import sys
import threading
import time


def serve(client):
    with client:
        try:
            client.sendall(client.recv(4096))
        except OSError:
            pass


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # no descriptor left
            time.sleep(0.05)
            continue
        threading.Thread(target=serve, args=(client,), daemon=True).start()
