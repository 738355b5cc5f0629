"""Lines are read as text: a carriage return is lost, and what is no UTF-8 is replaced.

Expect: line
Fails: S1
"""

import socket
import sys
import threading
import time


def serve(client):
    with client, client.makefile("r", encoding="utf-8", errors="replace") as lines:
        try:
            for line in lines:
                client.sendall(line.encode())
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
