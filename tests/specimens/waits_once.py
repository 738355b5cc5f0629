"""A process per client, whose parent waits for one child for each SIGCHLD.

Fails: C7
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


def collect(*_):
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass


def end(*_):
    os.killpg(0, signal.SIGKILL)  # the children, too


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGCHLD, collect)
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
        client.close()
