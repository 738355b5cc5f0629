"""How to read each chart of the page."""

THROUGHPUT = """
Verified messages a second: the median of the rounds, and its 95 % interval (the line across the
end). Where two intervals do not touch, the difference is real; where they do, look at the ranking.
A pale bar with a broken edge and a ≥ is a lower bound: the client could not ask faster. A hatched
bar is of a server that left clients without any reply: its rate is only that of the clients that it
served ("64 of 400"), and cannot be compared with the others.
"""

CPU = """
CPU time of the server's whole process tree, divided by the messages that it answered: the median of
the rounds, and its 95 % interval. Shorter is better. It is the server's own even where the client
was the limit, so it is what targets are ranked by; compare it within one run. A hatched bar is of a
server that served only some of the clients.
"""

LATENCY = """
Each grid line to the right leaves a tenth of the messages: the slowest tenth, the slowest
hundredth. Both scales are logarithmic: a curve one grid line above another is ten times slower. One
that turns steeply up has a few messages that waited for something other than their turn. A dashed
curve shows only the clients that were served ("64 of 400"); those that never got a reply are not in
it.
"""

OVER_TIME = """
Verified messages in each second of one round (the median one). A flat line is a steady state; a
slope at the beginning calls for more --warmup; a dip is a stall: look at the errors, and at what
else ran on the machine. A dashed line is of a server that served only some of the clients.
"""

SCALING = """
The same servers as one thing changes; the bar through a point is its 95 % interval. A flat line
does not care; one that falls (or, for CPU, rises) shows where a model stops scaling, but not where
it ends in open points with an arrow: there the client was the limit, and the server can do more
(≥). A dashed line leads to a point at which only some of the clients were served.
"""
