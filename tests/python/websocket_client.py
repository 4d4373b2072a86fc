"""WebSockets by the `websockets` package through the edge. Prints a line of JSON: what became of each.

standard input, read once it has printed `ready`: JSON with the edge's port, the files `authority`, `key`, `certificate` and
`certificateKey`, and by name the cases: `token`, `scheme`, `path`, `certificate` (bool), `until`
(whether to wait for the end)
"""
import asyncio
import json
import signal
import ssl
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sender import Sender

# What is never cut fails.
signal.alarm(90)
print("ready", flush=True)
asked = json.load(sys.stdin)
NAME = "api.example"


def headers(case, nonce):
    url = f"https://{NAME}{case['path']}"
    sender = Sender(asked["key"], case["token"])
    sender.nonce = nonce
    if case["scheme"] == "DPoP":
        return dict(sender.headers("GET", url))
    return {"authorization": f"{case['scheme']} {case['token']}"} if case["token"] else {}


def opened(case, nonce=None):
    context = ssl.create_default_context(cafile=asked["authority"])
    if case["certificate"]:
        context.load_cert_chain(asked["certificate"], asked["certificateKey"])
    return connect(
        f"wss://{NAME}{case['path']}",
        host="127.0.0.1",
        port=asked["port"],
        ssl=context,
        server_hostname=NAME,
        additional_headers=headers(case, nonce),
        max_size=None,
        proxy=None,
        ping_interval=None,
    )


async def exchange(case):
    outcome = {"challenges": 0}
    nonce = None
    while True:
        try:
            connection = await opened(case, nonce)
            break
        except InvalidStatus as error:
            fields = error.response.headers
            challenges = ", ".join(fields.get_all("www-authenticate"))
            if nonce or "use_dpop_nonce" not in challenges:
                return outcome | {"status": error.response.status_code}
            nonce = fields["dpop-nonce"]
            outcome["challenges"] += 1
    async with connection:
        # What is cut with its token has to be done with this before.
        large = "x" * (100_000 if case["until"] else 5_000_000)
        for name, message in (("text", "hello"), ("bytes", b"\0\1"), ("large", large)):
            await connection.send(message)
            outcome[name] = await connection.recv() == message
        await connection.send("who")
        outcome["result"] = await connection.recv()
        outcome["ping"] = await (await connection.ping()) >= 0
        if case["until"]:
            ticks = 0
            try:
                while True:
                    await connection.send("tick")
                    await connection.recv()
                    ticks += 1
                    await asyncio.sleep(0.02)
            except ConnectionClosed:
                outcome["ended"] = time.time()
            outcome["ticks"] = ticks > 10
    return outcome


async def main():
    names = list(asked["cases"])
    done = await asyncio.gather(*(exchange(asked["cases"][name]) for name in names))
    print(json.dumps(dict(zip(names, done))))


asyncio.run(main())
