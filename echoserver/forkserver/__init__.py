"""Fork from a process that has imported next to nothing.

What a fork costs is what the parent has in memory: its page tables are copied, and each page that
parent or child then writes to; and in Python, to look at an object is to write its reference
count. A server has a command line, a configuration and a log in memory, of which a child that
serves one client needs nothing.

So the server (`client`) accepts, and passes each connection to a process of its own making
(`program`), which forks a child for it. `multiprocessing` calls such a process a fork server too,
Android a zygote. All that a child needs is made before the fork; only the socket's descriptor is
the client's, put in the place of another (dup2(2)).

Nobody outlives the server. Fork server and children are a process group, to which the kernel
sends SIGKILL when the server's end of a pipe, the lifeline, is closed (F_SETSIG, fcntl(2)). That
costs a child nothing; each would have to ask for a signal of its own at its parent's death.
"""
