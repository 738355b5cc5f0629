"""One loop for all; send may take a part, and nobody sends the rest.

Fails: S6 N6
"""

import selectors
import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            if sock is listener:
                try:
                    client, _ = listener.accept()
                except OSError:
                    continue
                client.setblocking(False)
                selector.register(client, selectors.EVENT_READ)
                continue
            try:
                if data := sock.recv(4096):
                    try:
                        sock.send(data)
                    except BlockingIOError:
                        pass
                    continue
            except OSError:
                pass
            selector.unregister(sock)
            sock.close()
