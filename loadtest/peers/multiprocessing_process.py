"""A ``multiprocessing.Process`` per client: as its documentation starts one."""

import socket
import sys
from multiprocessing import get_context


def serve(client: socket.socket) -> None:
    """Echo until the client ends the stream."""
    with client:
        while data := client.recv(65536):
            client.sendall(data)


if __name__ == "__main__":
    process_of = get_context("fork").Process
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
        while True:
            client, _ = listener.accept()
            with client:  # the parent's copy
                process_of(target=serve, args=(client,), daemon=True).start()
