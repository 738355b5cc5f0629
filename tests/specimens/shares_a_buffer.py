"""The output of all clients is one list: an attribute of the class, not of the object.

Fails: C5 N4 N5 N6 N7
"""

import selectors
import socket
import sys


class Client:
    output = bytearray()  # one for all

    def __init__(self, sock):
        self.sock = sock


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            if key.fileobj is listener:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    continue
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ, Client(sock))
                continue
            client = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    del client.output[: client.sock.send(client.output)]
                    if not client.output:
                        selector.modify(client.sock, selectors.EVENT_READ, client)
                elif data := client.sock.recv(4096):
                    client.output += data
                    selector.modify(client.sock, selectors.EVENT_WRITE, client)
                else:
                    raise ConnectionError
            except OSError:
                selector.unregister(client.sock)
                client.sock.close()
