"""uvloop: asyncio's interface over libuv, the event loop of Node.js.

Nothing differs from the backend `asyncio` but the loop, which is written in C. An extra:
``pip install 'echoserver[uvloop]'``.
"""

import uvloop

from echoserver.backends.asyncio import AsyncioBackend


class UvloopBackend(AsyncioBackend):
    """Runs every flow on a uvloop event loop."""

    summary = "callbacks on libuv's event loop (uvloop)"
    new_loop = uvloop.new_event_loop
