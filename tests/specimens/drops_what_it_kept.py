"""One loop for all, which keeps what a full socket does not take, and forgets it at the end.

Fails: C1
"""

import selectors
import socket
import sys

KEPT = 192 * 1024  # bytes, above which it stops reading

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
                try:
                    waiting[sock] = waiting[sock][sock.send(waiting[sock]) :]
                except BlockingIOError:
                    pass
                wanted = selectors.EVENT_READ if len(waiting[sock]) < KEPT else 0
                wanted |= selectors.EVENT_WRITE if waiting[sock] else 0
                selector.modify(sock, wanted)
            except OSError:
                selector.unregister(sock)
                del waiting[sock]
                sock.close()
