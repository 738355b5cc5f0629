"""A process per client, as the tutorial writes it.

The parent keeps its copy of each client's socket until the next one is accepted, so that a client
waits for the end of the stream. Its children are left alone when it is told to end, their remains
take descriptors, and the queue holds five.

Expect: upper
Fails: L4 C1 N5 N9
"""

import sys
from multiprocessing import Process
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket


def talk(client):
    while True:
        try:
            data = client.recv(1024)
            if not data:
                break
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
        Process(target=talk, args=(client,)).start()
