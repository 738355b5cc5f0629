"""Grade any TCP echo server, in any language, from outside: what it does on the wire and in /proc.

`life`, `stream`, `connection` and `concurrency` hold the checks, as an instructor would explain
them; `runner` carries them out against a server that `submission` starts; `formats` writes what
they found for people and for the hosts that grade.
"""
