#!/bin/sh
# The shell that starts the server gets SIGTERM, and the server does not.
#
# Fails: L4
python3 - "$1" <<'END'
import socket, sys, threading, time

def serve(client):
    with client:
        try:
            while data := client.recv(4096):
                client.sendall(data)
        except OSError:
            pass

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
while True:
    try:
        client, _ = listener.accept()
    except OSError:  # no descriptor left
        time.sleep(0.05)
        continue
    threading.Thread(target=serve, args=(client,), daemon=True).start()
END
