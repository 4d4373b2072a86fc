"""Calls of every kind by grpcio through the edge. Prints a line of JSON: what became of each.

arguments: the edge's port, file with the authority (PEM), file with the client's private key (PEM),
a token

Once it has printed `ready` it reads a token that ends in a few seconds from its standard input.
"""
import json
import signal
import sys
import time

import grpc

from sender import Sender

# What is never cut fails.
signal.alarm(90)
port, authority, key, token = sys.argv[1:]
NAME = "api.example"

with open(authority, "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
options = [
    ("grpc.ssl_target_name_override", NAME),
    ("grpc.default_authority", NAME),
    ("grpc.enable_retries", 0),
]
channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
sender = Sender(key, token)
outcome = {}


def metadata(method, by=sender):
    return by.headers("POST", f"https://{NAME}/test.Echo/{method}")


def told(call):
    """What a call said around its messages."""
    return {
        "initial": {name: value for name, value in call.initial_metadata() if name.startswith("seen-")},
        "trailing": {name: value for name, value in call.trailing_metadata() if name == "trailer"},
        "code": call.code().name,
        "details": call.details(),
    }


unary = channel.unary_unary("/test.Echo/Unary")
from_service = channel.unary_stream("/test.Echo/FromService")
from_client = channel.stream_unary("/test.Echo/FromClient")
both = channel.stream_stream("/test.Echo/Both")

# Without a token, and without a nonce: refused by status, and the challenge can be read.
for name, shown in (("no token", []), ("no nonce", metadata("Unary"))):
    try:
        unary(b"x", metadata=shown, timeout=60)
    except grpc.RpcError as error:
        fields = dict(error.trailing_metadata())
        outcome[name] = {
            "code": error.code().name,
            "details": error.details(),
            "challenges": [v for n, v in error.trailing_metadata() if n == "www-authenticate"],
        }
        sender.nonce = fields.get("dpop-nonce") or sender.nonce
outcome["nonce"] = sender.nonce is not None

answer, call = unary.with_call(b"one", metadata=metadata("Unary"), timeout=60)
outcome["unary"] = told(call) | {"answer": answer.decode()}
large = b"x" * 3_000_000
outcome["large"] = unary(large, metadata=metadata("Unary"), timeout=60) == large

call = from_service(b"300", metadata=metadata("FromService"), timeout=60)
outcome["from service"] = {"answers": len(list(call))} | told(call)

parts = (b"%d" % number for number in range(300))
answer, call = from_client.with_call(parts, metadata=metadata("FromClient"), timeout=60)
outcome["from client"] = {"answer": answer.count(b",") + 1} | told(call)


def asking(last, answers):
    """Each question but the first follows the answer to the one before."""
    for number in range(last):
        while len(answers) < number:
            time.sleep(0.001)
        yield b"%d" % number


answers = []
call = both(asking(20, answers), metadata=metadata("Both"), timeout=60)
for answer in call:
    answers.append(answer)
outcome["both"] = {"answers": len(answers)} | told(call)

for name, body, timeout in (("fail", b"fail", 60), ("deadline", b"slow", 1)):
    try:
        unary(body, metadata=metadata("Unary"), timeout=timeout)
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        outcome[name] = {
            "code": error.code().name,
            "details": error.details(),
            "trailer": trailing.get("trailer"),
        }

# A method that no route takes and a proof for another method: by status.
for name, path, shown in (
    ("unknown", "/other.Echo/Unary", metadata("Unary")),
    ("other method's proof", "/test.Echo/Unary", metadata("Both")),
):
    try:
        channel.unary_unary(path)(b"x", metadata=shown, timeout=60)
    except grpc.RpcError as error:
        outcome[name] = error.code().name

# A token of a few seconds, and a neighbour on the same connection that outlives it.
neighbour = from_service(b"endless", metadata=metadata("FromService"))
print("ready", flush=True)
short = Sender(key, sys.stdin.read())
short.nonce = sender.nonce
call = from_service(b"endless", metadata=metadata("FromService", short))
ticks = 0
try:
    for _ in call:
        ticks += 1
except grpc.RpcError as error:
    outcome["cut"] = {"code": error.code().name, "ended": time.time()}
outcome["ticks"] = ticks > 5
outcome["neighbour"] = next(neighbour).decode()
neighbour.cancel()
print(json.dumps(outcome))
