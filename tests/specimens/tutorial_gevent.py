"""A greenlet per client, as the tutorial writes it.

In gevent, send may take a part, and nobody sends the rest. The queue holds five, and accept ends
everything when descriptors run out.

Expect: upper
Fails: S6 N5 N6 N9
"""

import sys

import gevent
from gevent import monkey

monkey.patch_all()

from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket  # noqa: E402


def talk(client):
    try:
        while True:
            data = client.recv(1024)
            if not data:
                break
            client.send(data.upper())
    except Exception as error:  # noqa: BLE001
        print(error)
    finally:
        client.close()


if __name__ == "__main__":
    server = socket(AF_INET, SOCK_STREAM)
    server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(sys.argv[1])))
    server.listen(5)
    while True:
        client, address = server.accept()
        gevent.spawn(talk, client)
