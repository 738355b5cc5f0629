"""The parent keeps its copy of a client's socket until the next one is accepted.

Fails: C1
"""

import os
import signal
import socket
import sys
import time


def serve(client):
    try:
        while data := client.recv(4096):
            client.sendall(data)
    except OSError:
        pass


def end(*_):
    os.killpg(0, signal.SIGKILL)  # the children, too


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    signal.signal(signal.SIGTERM, end)
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # no descriptor left
            time.sleep(0.05)
            continue
        if os.fork() == 0:
            listener.close()
            serve(client)
            os._exit(0)
