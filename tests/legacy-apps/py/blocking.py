"""Blocking sockets: echo, files over a socket, timeouts, peek, wait-all, half-close."""
import hashlib
import socket
import sys
import threading

role, port = sys.argv[1], int(sys.argv[2])


def pattern(seed, size):
    block = hashlib.sha256(str(seed).encode()).digest()
    return (block * (size // len(block) + 1))[:size]


def serve_one(conn):
    with conn:
        reader = conn.makefile("rb")
        while True:
            line = reader.readline()
            if not line:
                break
            word, size = line.split()
            data = reader.read(int(size))
            if word == b"echo":
                conn.sendall(data)
            elif word == b"hash":
                conn.sendall(hashlib.sha256(data).hexdigest().encode() + b"\n")
            elif word == b"late":
                threading.Event().wait(0.3)
                conn.sendall(b"late")


def server():
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=serve_one, args=(conn,), daemon=True).start()


def exchange(conn, word, data, size):
    sender = threading.Thread(target=conn.sendall, args=(b"%s %d\n" % (word, len(data)) + data,))
    sender.start()
    got = conn.recv(size, socket.MSG_WAITALL)
    sender.join()
    return got


def client():
    total = hashlib.sha256()
    conns = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    for i in range(60):
        for c, conn in enumerate(conns):
            for size in (1, 100, 5000):
                data = pattern((i, c), size)
                got = exchange(conn, b"echo", data, size)
                assert got == data, (i, c, size)
                total.update(got)
    for size in (70_000, 1_000_000, 8_000_000):
        data = pattern(size, size)
        assert exchange(conns[0], b"echo", data, size) == data
        print("echo", size, exchange(conns[1], b"hash", data, 65).decode().strip())
    conn = conns[2]
    conn.sendall(b"echo 6\nabcdef")
    print("peek", conn.recv(3, socket.MSG_PEEK), conn.recv(3, socket.MSG_WAITALL), conn.recv(3, socket.MSG_WAITALL))
    conn.settimeout(0.05)
    conn.sendall(b"late 0\n")
    try:
        print("early", conn.recv(4))
    except TimeoutError as e:
        print("timeout", e)
    conn.settimeout(30)
    print("then", conn.recv(4, socket.MSG_WAITALL))
    conn.setblocking(False)
    try:
        conn.recv(1)
    except BlockingIOError as e:
        print("nothing", e.errno)
    conn.setblocking(True)
    buffers = [bytearray(3), bytearray(5)]
    conn.sendmsg([b"echo ", b"8\n", b"01234567"])
    got = 0
    while got < 8:
        views = [memoryview(b) for b in buffers]
        n = conn.recvmsg_into([views[0][min(got, 3):], views[1][max(0, got - 3):]])[0]
        got += n
    print("scattered", bytes(buffers[0]), bytes(buffers[1]))
    for c in conns:
        c.shutdown(socket.SHUT_WR)
        print("after shutdown", c.recv(1))
        try:
            c.send(b"x")
        except BrokenPipeError as e:
            print("send after shutdown", e.errno)
        print("error", c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        c.close()
    print("sum", total.hexdigest())


server() if role == "server" else client()
