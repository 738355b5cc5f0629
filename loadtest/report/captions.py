"""How to read each chart of the page."""

THROUGHPUT = """
Verified messages a second: the median of the rounds, and its 95 % interval (the line across the
end). Where two intervals do not touch, the difference is real; where they do, look at the ranking.
A pale bar with a broken edge is a lower bound: the client could not ask faster.
"""

CPU = """
CPU time of the server's whole process tree, divided by the messages that it answered: the median of
the rounds, and its 95 % interval. Shorter is better. It is the server's own even where the
client was the limit, so it is what targets are ranked by; compare it within one run.
"""

LATENCY = """
Each grid line to the right leaves a tenth of the messages: the slowest tenth, the slowest
hundredth. Both scales are logarithmic: a curve one grid line above another is ten times slower. One
that turns steeply up has a few messages that waited for something other than their turn.
"""

OVER_TIME = """
Verified messages in each second of one round (the median one). A flat line is a steady state; a
slope at the beginning calls for more --warmup; a dip is a stall: look at the errors, and at what
else ran on the machine.
"""

SCALING = """
The same servers as one thing changes, on a logarithmic scale. A flat line does not care; one that
falls (or, for CPU, rises) shows where a model stops to scale.
"""
