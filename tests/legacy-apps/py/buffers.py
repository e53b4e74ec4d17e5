"""Options that bound what waits on a connection, or how long: what a sender is told, with a peer that does not read.
Both ends are here, and the connection is on rings where it can be. argv[1] names the case."""
import errno
import select
import socket
import struct
import sys
import threading

from ends import pair

NOTSENT_LOWAT = 25


def fill(s, size=65536):
    """Sends until there is no room. How many bytes that were."""
    s.setblocking(False)
    n = 0
    try:
        while True:
            n += s.send(b"x" * size)
    except BlockingIOError:
        return n


def outcome(what, call):
    try:
        print(what, call())
    except OSError as e:
        print(what, errno.errorcode[e.errno])


def sndbuf():
    """A sender that waits goes on when another thread makes the buffer larger."""
    client, server = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    fill(client)
    client.setblocking(True)
    sent = threading.Event()
    thread = threading.Thread(target=lambda: (client.send(b"q" * 400000), sent.set()), daemon=True)
    thread.start()
    print("waits", not sent.wait(0.2))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
    print("goes on", sent.wait(20))


def ring():
    """The same where a ring is full."""
    client, server = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
    fill(client, 1 << 20)
    client.setblocking(True)
    sent = threading.Event()
    thread = threading.Thread(target=lambda: (client.send(b"q"), sent.set()), daemon=True)
    thread.start()
    print("waits", not sent.wait(0.2))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    more = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 4 << 20
    # A machine that does not allow so much says so in both runs.
    print("goes on", sent.wait(20 if more else 0.2) or not more)


def edge():
    """The same of one that waits for an edge."""
    client, server = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
    set_ = select.epoll()
    set_.register(client, select.EPOLLOUT | select.EPOLLET)
    fill(client, 1 << 20)
    # What the kernel moves on to the other end makes room for more.
    while fill(client, 1000) or set_.poll(0.2):
        pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    more = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 4 << 20
    # A machine that does not allow so much says so in both runs.
    print("told", bool(set_.poll(20 if more else 0.2)) or not more)
    print("has room", not more or client.send(b"x"))

    # An option that leaves the room as it is, until the peer reads.
    client, server = pair()
    set_ = select.epoll()
    set_.register(client, select.EPOLLOUT | select.EPOLLET)
    sent = fill(client, 1 << 20)
    while n := fill(client, 1000):
        sent += n
        set_.poll(0.2)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    while sent:
        sent -= len(server.recv(min(sent, 1 << 20)))
    print("told", bool(set_.poll(10)))


def less():
    """A buffer that is made smaller while bytes are on their way: a sender that waits is told of room all the same."""
    client, server = pair()
    client.setblocking(False)
    for _ in range(50):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.send(b"x" * 100000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        done = threading.Event()
        reader = threading.Thread(target=lambda: [server.recv(10000) for _ in range(10)] and done.set(), daemon=True)
        reader.start()
        ready = select.select([], [client], [], 20)[1]
        if not ready:
            print("never told")
            return
        reader.join(20)
        server.setblocking(False)
        try:
            while server.recv(1 << 20):
                pass
        except BlockingIOError:
            server.setblocking(True)
    print("told")


def notsent():
    """What piles up before a reader that does not read, by a sender that waits for POLLOUT."""
    for when in ("before", "after", "listener", "lifted"):
        low = struct.pack("I", 16384)

        def before(listener, client):
            if when == "before":
                client.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, low)
            if when == "listener":
                listener.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, low)

        client, server = pair(before)
        if when == "listener":
            client, server = server, client
        if when in ("after", "lifted"):
            client.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, low)
        if when == "lifted":
            client.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, struct.pack("I", 0xFFFFFFFF))
        client.setblocking(False)
        n = 0
        while select.select([], [client], [], 0.3)[1]:
            n += client.send(b"x" * 4096)
        print(when, "little" if n < 600_000 else "much", client.getsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT))
        # It is not stuck.
        got = 0
        while got < n:
            got += len(server.recv(1 << 20))
        print("writable", bool(select.select([], [client], [], 20)[1]))


def negative():
    """A negative time is none at all (sock_set_timeout); one of the listener is its connections'."""
    for when in ("after", "listener"):
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            for seconds, micros in ((-1, 0), (-1, 999999), (0, 50000), (1 << 40, 0), ((1 << 63) - 1, 0)):
                value = struct.pack("qq", seconds, micros)

                def before(listener, client):
                    if when == "listener":
                        listener.setsockopt(socket.SOL_SOCKET, option, value)

                if when == "listener" and seconds < 0 and option == socket.SO_RCVTIMEO:
                    continue  # accept would not wait either
                client, server = pair(before)
                if when == "after":
                    server.setsockopt(socket.SOL_SOCKET, option, value)
                if seconds > 0:
                    # It waits: what comes later is received.
                    threading.Timer(0.2, lambda: client.send(b"late")).start()
                    outcome(f"{when} {option} {seconds}", lambda: server.recv(9))
                elif option == socket.SO_RCVTIMEO:
                    outcome(f"{when} {option} {seconds} {micros}", lambda: server.recv(9))
                else:
                    def full():
                        while True:
                            server.send(b"x" * 1000000)
                    outcome(f"{when} {option} {seconds} {micros}", full)


globals()[sys.argv[1]]()
