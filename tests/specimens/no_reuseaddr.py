"""It cannot listen on a port with connections in TIME_WAIT.

Fails: L3
"""

import socket
import sys
import threading
import time


def serve(client):
    with client:
        try:
            while data := client.recv(4096):
                client.sendall(data)
        except OSError:
            pass


def listen(port):
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


if __name__ == "__main__":
    listener = listen(int(sys.argv[1]))
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # no descriptor left
            time.sleep(0.05)
            continue
        threading.Thread(target=serve, args=(client,), daemon=True).start()
