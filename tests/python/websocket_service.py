"""A WebSocket service in clear that echoes. Prints the port that it listens on."""
import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosedError


async def echo(connection):
    try:
        async for message in connection:
            if message == "who":
                message = connection.request.headers.get("X-Holdfast-Result", "-")
            await connection.send(message)
    except ConnectionClosedError:
        # The edge cuts without a word: that is what is tested.
        pass


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=None, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        # Ends with whoever started it.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
