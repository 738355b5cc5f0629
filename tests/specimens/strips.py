"""It strips what it takes for a line.

Fails: L2 S1
"""

import socket
import sys
import threading
import time


def serve(client):
    with client:
        try:
            while data := client.recv(4096):
                client.sendall(data.strip())
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
