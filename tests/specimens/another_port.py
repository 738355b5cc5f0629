"""It listens on a port of its own choice.

Fails: L1
"""

import socket

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    while True:
        client, _ = listener.accept()
        with client:
            while data := client.recv(4096):
                client.sendall(data)
