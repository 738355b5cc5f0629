"""The first byte of a client is looked at before it is known that there is one.

Fails: C2
"""

import selectors
import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    waiting = {}

    def leave(sock):
        selector.unregister(sock)
        del waiting[sock]
        sock.close()

    while True:
        for key, events in selector.select():
            sock = key.fileobj
            if sock is listener:
                try:
                    client, _ = listener.accept()
                except OSError:
                    continue
                client.setblocking(False)
                waiting[client] = None
                selector.register(client, selectors.EVENT_READ)
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    waiting[sock] = waiting[sock][sock.send(waiting[sock]) :]
                    if not waiting[sock]:
                        selector.modify(sock, selectors.EVENT_READ)
                    continue
                data = sock.recv(4096)
            except OSError:
                leave(sock)
                continue
            if waiting[sock] is None:
                print("first byte:", data[0])
            if data:
                waiting[sock] = data
                selector.modify(sock, selectors.EVENT_WRITE)
            else:
                leave(sock)
