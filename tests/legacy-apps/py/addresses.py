"""Every way to reach a server on the same host, and options and endings that change what TCP does."""
import errno
import hashlib
import os
import select
import socket
import struct
import sys
import threading

role, port = sys.argv[1], int(sys.argv[2])
# port: dual-stack listener on all addresses; port + 1: TCP_DEFER_ACCEPT; port + 2: two processes, SO_REUSEPORT


def own_address():
    """An address of this host other than loopback, if it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return s.getsockname()[0]
        except OSError:
            return None


def serve(conn):
    with conn:
        try:
            while data := conn.recv(65536):
                if data.startswith(b"RESET"):
                    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if data.startswith(b"UNREAD"):
                    # Closed with data left to read: the kernel answers with a reset.
                    conn.recv(1, socket.MSG_PEEK)
                    return
                if data.startswith(b"PEER"):
                    conn.sendall(conn.getpeername()[0].encode() + b"\n")
                    continue
                conn.sendall(data)
        except ConnectionError:
            pass


def accept_on(listener):
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=serve, args=(conn,), daemon=True).start()


def server():
    both = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    deferred = socket.create_server(("127.0.0.1", port + 1))
    deferred.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    shared = socket.create_server(("127.0.0.1", port + 2), reuse_port=True, backlog=64)
    if os.fork() == 0:
        # Its own listener in the same group, not the inherited one.
        own = socket.create_server(("127.0.0.1", port + 2), reuse_port=True, backlog=64)
        shared.close()
        both.close()
        deferred.close()
        # Ends with its parent.
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
        accept_on(own)
    for listener in (both, deferred):
        threading.Thread(target=accept_on, args=(listener,), daemon=True).start()
    accept_on(shared)


def exchanges(conn, n=60):
    h = hashlib.sha256()
    for i in range(n):
        data = b"%d " % i * (i + 1)
        conn.sendall(data)
        got = b""
        while len(got) < len(data):
            more = conn.recv(65536)
            assert more, "end of stream"
            got += more
        assert got == data
        h.update(got)
    return h.hexdigest()[:16]


def outcome(attempt):
    try:
        return attempt()
    except OSError as e:
        return errno.errorcode.get(e.errno, e)


def line(conn):
    return conn.makefile("rb").readline().strip().decode()


def client():
    own = own_address()
    places = [("127.0.0.1", port), ("127.0.0.2", port), ("::1", port), ("::ffff:127.0.0.1", port), (own or "127.0.0.3", port),
              ("127.0.0.1", port + 1)] + [("127.0.0.1", port + 2)] * 8
    for n, place in enumerate(places):
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        with socket.socket(family) as conn:
            conn.setblocking(n % 2 == 0)
            error = conn.connect_ex(place)
            if error:
                assert error == errno.EINPROGRESS, error
                select.select([], [conn], [], 30)
                assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                conn.setblocking(True)
            print(n, "own address" if place[0] == own else place[0], place[1] - port, exchanges(conn))
            conn.sendall(b"PEER")
            seen = line(conn)
            print("  peer as seen", "own address" if own and seen.endswith(own) else seen)
    for word in (b"RESET", b"UNREAD"):
        conn = socket.create_connection(("127.0.0.1", port))
        exchanges(conn)
        conn.sendall(word + b"x" * (100_000 if word == b"UNREAD" else 0))
        print(word, "ends", outcome(lambda: conn.recv(10)) in ("ECONNRESET", b""))
        # Whatever came first, a second write fails.
        outcome(lambda: conn.send(b"1"))
        select.select([], [], [conn], 0.05)
        print(word, "write", outcome(lambda: conn.send(b"2")))
        conn.close()
    conn = socket.create_connection(("127.0.0.1", port))
    exchanges(conn)
    corks = []
    for on in (1, 0, 1, 1, 0, 0, 1, 0, 7):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)
        if len(corks) % 3:
            exchanges(conn)
        corks.append(conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) if len(corks) % 2 else None)
    # The cork is on: urgent data goes by the kernel, which must know.
    conn.send(b"!", socket.MSG_OOB)
    print("corks", corks, conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
    print("uncorked", outcome(lambda: conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)), exchanges(conn))
    conn.close()
    conn = socket.create_connection(("127.0.0.1", port))
    exchanges(conn)
    conn.send(b"!", socket.MSG_OOB)
    print("after urgent data", exchanges(conn) == exchanges(conn))
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    print("options", exchanges(conn))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 30_000))
    print("SO_RCVTIMEO", outcome(lambda: conn.recv(1)))
    conn.close()
    print("refused", outcome(lambda: socket.create_connection(("127.0.0.1", port + 3))))
    for kind in (socket.AF_UNIX, socket.AF_INET):
        a, b = socket.socketpair(kind) if kind == socket.AF_UNIX else tcp_pair()
        sender = threading.Thread(target=lambda: [b.sendall(a_data) for a_data in [b"z" * 500_000]])
        sender.start()
        print("pair", kind.name, len(a.recv(500_000, socket.MSG_WAITALL)))
        sender.join()
        a.close()
        print("pair end", b.recv(1))
        b.close()
    alone = socket.socket()
    alone.bind(("127.0.0.1", 0))
    alone.connect(alone.getsockname())
    alone.sendall(b"to myself")
    print("self-connect", alone.recv(100))


def tcp_pair():
    """Both ends in one thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for i in range(50):
        a.sendall(b"%3d" % i)
        assert b.recv(3, socket.MSG_WAITALL) == b"%3d" % i
        b.sendall(b"ok")
        assert a.recv(2, socket.MSG_WAITALL) == b"ok"
    return a, b


server() if role == "server" else client()
