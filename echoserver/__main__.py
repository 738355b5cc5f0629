"""``python -m echoserver`` is the command `echoserver`."""

from echoserver.launch import echoserver

if __name__ == "__main__":
    echoserver()
