"""gRPC (Debian's, on its C core): rpc.py server PORT, and rpc.py client PORT.
Calls and streams both ways, of all sizes, many at a time; errors, deadlines, cancelled calls; a connection with keep-alive."""
import asyncio
import hashlib
import signal
import sys
import threading
from concurrent import futures

import grpc

ROLE, PORT = sys.argv[1], sys.argv[2]


def data(n, seed=0):
    return bytes((i * 7 + seed) % 251 for i in range(min(n, 251))) * (n // 251 + 1)


def digest(b):
    return f"{len(b)} {hashlib.sha256(b).hexdigest()[:16]}"


def reverse(request, context):
    return request[::-1]


def refuse(request, context):
    context.set_trailing_metadata((("why", "asked"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")


def never(request, context):
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(60)
    return b"late"


def send(request, context):
    count, size = map(int, request.split())
    for i in range(count):
        yield data(size, i)[:size]


def collect(requests, context):
    whole = hashlib.sha256()
    n = sum(1 for r in requests if whole.update(r) is None)
    return f"{n} {whole.hexdigest()[:16]}".encode()


def double(requests, context):
    for r in requests:
        yield r + r


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(16))
    methods = {
        "reverse": grpc.unary_unary_rpc_method_handler(reverse),
        "refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "never": grpc.unary_unary_rpc_method_handler(never),
        "send": grpc.unary_stream_rpc_method_handler(send),
        "collect": grpc.stream_unary_rpc_method_handler(collect),
        "double": grpc.stream_stream_rpc_method_handler(double),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    server.add_insecure_port(f"127.0.0.1:{PORT}")
    server.start()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()
    server.stop(1).wait()


def status(call):
    try:
        return call()
    except grpc.RpcError as e:
        return e.code().name


def calls(channel):
    ask = channel.unary_unary("/test.Test/reverse")
    for size in (0, 1, 100, 16_384, 65_536, 1_000_000, 4_000_000):
        request = data(size)[:size]
        print("call", size, ask(request) == request[::-1])
    print("many", sum(ask(b"%d" % i) == (b"%d" % i)[::-1] for i in range(300)))
    with futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda i: ask(data(i * 100, i)) == data(i * 100, i)[::-1], range(200))
        print("at a time", sum(answers))
    print("too large", status(lambda: ask(bytes(5_000_000))))
    print("refused", status(lambda: channel.unary_unary("/test.Test/refuse")(b"")))
    print("unknown", status(lambda: channel.unary_unary("/test.Test/unknown")(b"")))
    print("deadline", status(lambda: channel.unary_unary("/test.Test/never")(b"", timeout=0.2)))
    call = channel.unary_unary("/test.Test/never").future(b"")
    call.cancel()
    print("cancelled", call.cancelled())


def streams(channel):
    for count, size in ((1, 0), (500, 10), (100, 20_000), (20, 1_000_000)):
        whole = hashlib.sha256()
        n = sum(1 for m in channel.unary_stream("/test.Test/send")(b"%d %d" % (count, size)) if whole.update(m) is None)
        print("from the server", n, whole.hexdigest()[:16])
        sent = [data(size, i)[:size] for i in range(count)]
        print("to the server", channel.stream_unary("/test.Test/collect")(iter(sent)).decode())
        print("both ways", digest(b"".join(channel.stream_stream("/test.Test/double")(iter(sent)))))
    # A reader that stops half way.
    stream = channel.unary_stream("/test.Test/send")(b"1000 100000")
    print("first", digest(next(stream)))
    stream.cancel()
    print("still", channel.unary_unary("/test.Test/reverse")(b"abc"))


async def asynchronous():
    async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        ask = channel.unary_unary("/test.Test/reverse")
        answers = await asyncio.gather(*(ask(b"%d" % i) for i in range(100)))
        print("asynchronous", sum(a == (b"%d" % i)[::-1] for i, a in enumerate(answers)))


def client():
    # Keep-alive sets TCP_USER_TIMEOUT, as servers do always.
    for options in ([], [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]):
        with grpc.insecure_channel(f"127.0.0.1:{PORT}", options=options) as channel:
            calls(channel)
            streams(channel)
    asyncio.run(asynchronous())


{"server": serve, "client": client}[ROLE]()
