"""One loop for all, which closes at the end of the stream, whatever still waits to be sent.

Fails: C1
"""

import selectors
import socket
import sys

BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    waiting = {}
    while True:
        for key, events in selector.select():
            sock = key.fileobj
            if sock is listener:
                try:
                    client, _ = listener.accept()
                except OSError:
                    continue
                client.setblocking(False)
                waiting[client] = b""
                selector.register(client, selectors.EVENT_READ)
                continue
            try:
                if events & selectors.EVENT_READ:
                    data = sock.recv(65536)
                    if not data:
                        raise ConnectionError
                    waiting[sock] += data
                if events & selectors.EVENT_WRITE:
                    waiting[sock] = waiting[sock][sock.send(waiting[sock][:1024]) :]
                full = len(waiting[sock]) > 65536
                selector.modify(
                    sock, selectors.EVENT_WRITE if full else BOTH if waiting[sock] else 1
                )
            except OSError:
                selector.unregister(sock)
                del waiting[sock]
                sock.close()
