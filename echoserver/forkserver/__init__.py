"""The fork server: a process that forks children cheaply, as it has imported next to nothing.

A fork costs time for the parent's memory: its page tables are copied, and so is each page that
parent or child then writes to. In Python, even reading an object writes its reference count. A
server has a command line, a configuration and a log in memory, none of which a child that serves
one client needs.

So the server (`client`) accepts, and passes each connection to a separate process that it starts
(`program`), which forks a child for it. `multiprocessing` calls such a process a fork server too;
Android calls it a zygote. All that a child needs is made before the fork. Only the client's socket
is new, and takes over the descriptor of a placeholder (dup2(2)).

No process outlives the server. The fork server and its children are a process group, to which the
kernel sends SIGKILL when the server's end of a pipe, the lifeline, is closed (F_SETSIG, fcntl(2)).
That costs a child nothing, while a parent-death signal would take a system call in each child.
"""
