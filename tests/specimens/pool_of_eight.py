"""Eight threads serve eight clients; the ninth waits until one of them leaves.

Fails: N4
"""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def serve(client):
    with client:
        try:
            while data := client.recv(4096):
                client.sendall(data)
        except OSError:
            pass


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    with ThreadPoolExecutor(8) as pool:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                continue
            pool.submit(serve, client)
