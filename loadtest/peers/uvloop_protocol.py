"""Callbacks per client, by asyncio's Protocol on uvloop."""

import uvloop

from loadtest.peers.asyncio_protocol import main

if __name__ == "__main__":
    uvloop.run(main())
