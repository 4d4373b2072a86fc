"""A gRPC service of the four kinds of call, in clear HTTP/2. Prints the port that it listens on.

Messages are plain bytes. Each answer says in its initial metadata what the edge told of the sender,
and ends with a trailer.
"""
import sys
import time
from concurrent import futures

import grpc


def greet(context):
    told = dict(context.invocation_metadata())
    names = ("x-holdfast-result", "x-holdfast-subject")
    context.send_initial_metadata([("seen-" + name, told.get(name, "-")) for name in names])
    context.set_trailing_metadata([("trailer", "at the end")])


def unary(request, context):
    greet(context)
    if request == b"fail":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    if request == b"slow":
        time.sleep(10)
    return request


def from_service(request, context):
    greet(context)
    if request == b"endless":
        while context.is_active():
            yield b"tick"
            time.sleep(0.05)
        return
    for number in range(int(request)):
        yield b"%d" % number


def from_client(requests, context):
    greet(context)
    return b",".join(requests)


def both(requests, context):
    greet(context)
    for request in requests:
        yield request


handlers = grpc.method_handlers_generic_handler(
    "test.Echo",
    {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "FromService": grpc.unary_stream_rpc_method_handler(from_service),
        "FromClient": grpc.stream_unary_rpc_method_handler(from_client),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    },
)
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((handlers,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
# Ends with whoever started it.
sys.stdin.read()
server.stop(None)
