"""A thread per client, as the tutorial writes it.

At the end of the stream the loop goes on for ever: a thread and its socket are left of each client,
and a CPU is busy. The queue holds five, and accept ends everything when descriptors run out.

Expect: upper
Fails: C1 C6 C7 N5 N9
"""

import sys
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from threading import Thread


def talk(client):
    while True:
        try:
            data = client.recv(1024)
            if not data:
                continue
            client.send(data.upper())
        except ConnectionError:
            break
    client.close()


if __name__ == "__main__":
    server = socket(AF_INET, SOCK_STREAM)
    server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(sys.argv[1])))
    server.listen(5)
    while True:
        client, address = server.accept()
        Thread(target=talk, args=(client,)).start()
