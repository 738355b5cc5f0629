"""One loop for all, in which a client's reset is an exception that nobody handles.

Fails: C3 C4 C5
"""

import selectors
import socket
import sys

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
            elif events & selectors.EVENT_WRITE:
                waiting[sock] = waiting[sock][sock.send(waiting[sock]) :]
                if not waiting[sock]:
                    selector.modify(sock, selectors.EVENT_READ)
            elif data := sock.recv(4096):
                waiting[sock] = data
                selector.modify(sock, selectors.EVENT_WRITE)
            else:
                selector.unregister(sock)
                del waiting[sock]
                sock.close()
