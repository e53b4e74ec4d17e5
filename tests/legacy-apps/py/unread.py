"""TCP_USER_TIMEOUT, with a peer that does not read, or is slow: who is told of the end of the connection, and who is not.
Both ends are here, and the connection is on rings where it can be. argv[1] names the case."""
import errno
import os
import select
import socket
import struct
import sys
import threading
import time

from ends import pair

USER_TIMEOUT = 18
# What the peer's kernel takes without its program lies between these two.
LITTLE, MUCH = 60_000, 400_000
PATIENCE = 30
# Over a wire the kernel's buffers grow otherwise than here. And zstackd takes what a program sends as long as the remote host has room, which
# is zstackd here, too, and has room for more than a sender's ring holds: a sender finds no room for a moment, and all of it is acknowledged.
REMOTE = "CULVERT_REMOTE" in os.environ
# Milliseconds.
NO_MOMENT = 1000


def limited(ms=400):
    client, server = pair()
    client.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, ms)
    return client, server


def name(call):
    """What a call comes to."""
    try:
        return call()
    except OSError as e:
        return errno.errorcode[e.errno]


def send_some(s, size):
    """Sends without waiting, until there is no room."""
    s.setblocking(False)
    while True:
        try:
            s.send(b"x" * size)
        except BlockingIOError:
            return


def fill(s, size):
    """Sends without waiting, until nobody takes more of it, whoever acknowledges what it has sent before."""
    send_some(s, size)
    p = select.poll()
    p.register(s, select.POLLOUT)
    while REMOTE and [events for _, events in p.poll(NO_MOMENT)] == [select.POLLOUT]:
        send_some(s, size)


def ended(s):
    """Waits for the end of a connection, asking for nothing else."""
    p = select.poll()
    p.register(s, 0)
    return [events & select.POLLERR for _, events in p.poll(PATIENCE * 1000)]


def set():
    """It counts whoever set it and when: also when more lies there already than the peer's kernel takes."""
    for when in ("before", "after", "listener", "late"):
        def before(listener, client):
            if when == "before":
                client.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, 400)
            if when == "listener":
                listener.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, 400)

        client, server = pair(before)
        if when == "listener":
            client, server = server, client
        if when == "after":
            client.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, 400)
        fill(client, 65536)
        if when == "late":
            client.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, 400)
        print(when, ended(client), name(lambda: client.send(b"x")), name(lambda: client.send(b"x")))


def blocking():
    """Of senders that wait: of small pieces, large ones, and a file."""
    for size in (1000, 100_000, 10_000_000):
        client, server = limited()

        def forever():
            while True:
                client.send(b"x" * size)

        print(size, name(forever), name(lambda: client.send(b"x")))
    client, server = limited()
    with open("large", "wb+") as f:
        f.truncate(40 << 20)

        def file():
            while True:
                client.sendfile(f, 0)

        print("file", name(file))


def away():
    """A program that does something else meanwhile finds the connection ended when it comes back."""
    tried = [(size, first) for size in (1000, 65536, 1 << 20) for first in ("error", "send", "receive")]
    pairs = []
    for size, first in tried:
        pairs.append(limited())
        fill(pairs[-1][0], size)
    time.sleep(3)
    for (size, first), (client, server) in zip(tried, pairs):
        calls = {
            "error": lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
            "send": lambda: client.send(b"x"),
            "receive": lambda: client.recv(9),
        }
        print(size, first, [name(call) for call in (calls[first], *calls.values())])


def request():
    """A request that is not read, and a wait for its answer."""
    for size in (LITTLE, MUCH, 1 << 20):
        client, server = limited()
        if REMOTE and size > LITTLE:
            fill(client, size)
            client.setblocking(True)
        else:
            client.sendall(b"x" * size)
        wait = 2 if size == LITTLE else PATIENCE
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", wait, 0))
        print(size, name(lambda: client.recv(9)))


def epolled():
    e = select
    both = e.EPOLLIN | e.EPOLLOUT
    for events in (e.EPOLLIN, e.EPOLLOUT, both, e.EPOLLOUT | e.EPOLLET, both | e.EPOLLET, e.EPOLLIN | e.EPOLLET):
        client, server = limited()
        waits = select.epoll()
        waits.register(client, events)
        end = time.monotonic() + PATIENCE
        told = 0
        while told & select.EPOLLERR == 0 and time.monotonic() < end:
            # Nobody says that there is room again to one who does not ask for that.
            (send_some if events & e.EPOLLOUT else fill)(client, 10_000)
            told = waits.poll(PATIENCE)
            told = told[0][1] if told else 0
            if told & select.EPOLLERR == 0 and told & ~(select.EPOLLIN | select.EPOLLOUT):
                print("odd", told)
        print(hex(events), told & (select.EPOLLERR | select.EPOLLHUP), name(lambda: client.send(b"x")))


def polled():
    client, server = limited()
    p = select.poll()
    p.register(client, select.POLLOUT)
    told = select.POLLOUT
    while told == select.POLLOUT:
        send_some(client, 10_000)
        told = p.poll(PATIENCE * 1000)
        told = told[0][1] if told else 0
    print(told, name(lambda: client.send(b"x")))


def selected():
    client, server = limited()
    while True:
        readable, writable, _ = select.select([client], [client], [], PATIENCE)
        if readable or not writable:
            break
        send_some(client, 10_000)
    print(bool(readable), bool(writable), name(lambda: client.send(b"x")), name(lambda: client.recv(9)))


def receiving():
    """A thread waits for an answer while another one sends: one of them is told why, the other that it is over."""
    client, server = limited()
    said = []

    def forever():
        while True:
            client.send(b"x" * 30_000)

    thread = threading.Thread(target=lambda: said.append(name(lambda: client.recv(9))), daemon=True)
    thread.start()
    said.append(name(forever))
    thread.join(PATIENCE)
    print(len(said), said.count("ETIMEDOUT"), all(x in ("ETIMEDOUT", "EPIPE", b"") for x in said))


def little():
    """What the peer's kernel has taken does not time out."""
    client, server = limited(200)
    client.send(b"x" * LITTLE)
    time.sleep(1)
    print(name(lambda: client.send(b"y")))
    got = 0
    while got < LITTLE + 1:
        got += len(server.recv(100_000))
    server.sendall(b"answer")
    print(name(lambda: client.recv(9)))


def slowly():
    """A peer that reads now and then gets every byte, on whichever way."""
    client, server = limited(60_000)
    data = (bytes(range(251)) * 12_000)[:3_000_000]
    got = bytearray()

    def read():
        pieces = 0
        while len(got) < len(data):
            got.extend(server.recv(30_000))
            pieces += 1
            if pieces % 25 == 0:
                time.sleep(0.15)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    client.setblocking(False)
    p = select.poll()
    p.register(client, select.POLLOUT)
    done = 0
    while done < len(data):
        if not p.poll(PATIENCE * 1000):
            print("never writable")
            break
        try:
            done += client.send(data[done:done + 50_000])
        except BlockingIOError:
            pass
    thread.join(PATIENCE)
    print("same", got == data)


def lifted():
    client, server = limited(200)
    client.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, 0)
    fill(client, 65536)
    time.sleep(1.5)
    print(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def then_stops():
    """A peer that has read much, and stops."""
    client, server = limited()
    read = threading.Thread(target=lambda: [server.recv(20_000, socket.MSG_WAITALL) for _ in range(100)], daemon=True)
    read.start()
    p = select.poll()
    p.register(client, select.POLLOUT)
    told = select.POLLOUT
    while told == select.POLLOUT:
        send_some(client, 20_000)
        told = p.poll(PATIENCE * 1000)
        told = told[0][1] if told else 0
    read.join(PATIENCE)
    print(told, read.is_alive(), name(lambda: client.send(b"x")))


globals()[sys.argv[1]]()
