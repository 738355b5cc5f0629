"""After each 1,000 bytes of a connection it sends one more.

Fails: S5 S6 C1 N2 N6 N7 N8
"""

import socket
import sys
import threading
import time


def serve(client):
    total = 0
    with client:
        try:
            while data := client.recv(4096):
                for byte in data:
                    total += 1
                    client.sendall(bytes([byte]) + (b"!" if total % 1000 == 0 else b""))
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
