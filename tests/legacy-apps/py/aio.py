"""asyncio streams: many connections, back-pressure, cancellation, and a subprocess beside them."""
import asyncio
import hashlib
import sys

role, port = sys.argv[1], int(sys.argv[2])


async def handle(reader, writer):
    try:
        while size := await reader.readline():
            data = await reader.readexactly(int(size))
            writer.write(data[::-1])
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def server():
    async with await asyncio.start_server(handle, "127.0.0.1", port, backlog=512) as s:
        await s.serve_forever()


async def talk(i):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    h = hashlib.sha256()
    for r in range(25):
        data = bytes((i * 7 + r * 13 + k) % 251 for k in range(1 + (i * 37 + r * 991) % 3000))
        writer.write(b"%d\n" % len(data) + data)
        got = await reader.readexactly(len(data))
        assert got == data[::-1]
        h.update(got)
    writer.close()
    await writer.wait_closed()
    return h.hexdigest()


async def big():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = bytes(range(256)) * 20_000
    for _ in range(4):
        writer.write(b"%d\n" % len(data))
        writer.write(data)
        got = await reader.readexactly(len(data))
        assert got == data[::-1]
    # Given up in the middle: the connection is dropped with data under way in both directions.
    writer.write(b"%d\n" % len(data))
    writer.write(data)
    try:
        await asyncio.wait_for(reader.readexactly(len(data) + 1), 0.3)
    except (asyncio.TimeoutError, asyncio.IncompleteReadError) as e:
        print("gave up", type(e).__name__)
    writer.transport.abort()
    return len(data)


async def client():
    sums = await asyncio.gather(*(talk(i) for i in range(60)), big())
    print(hashlib.sha256(repr(sums).encode()).hexdigest())
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print(await process.communicate(b"through a pipe"))


asyncio.run(server() if role == "server" else client())
