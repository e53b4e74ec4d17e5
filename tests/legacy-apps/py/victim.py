"""One end of a connection whose other end is hostile (hostile.py). Arguments: role, port, and for an
acceptor what the other end does, with a number."""
import errno
import os
import select
import signal
import socket
import struct
import sys
import time

role, port = sys.argv[1], int(sys.argv[2])


class Interrupted(Exception):
    pass


def alarm(*_):
    raise Interrupted


def ticks():
    t = os.times()
    return t.user + t.system


def timed(c):
    try:
        return c.recv(1)
    except TimeoutError:
        return b""


signal.signal(signal.SIGALRM, alarm)
def says(call):
    try:
        return call()
    except OSError as e:
        return errno.errorcode[e.errno]


def polled(c):
    p = select.poll()
    p.register(c, select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI)
    return p.poll(0)[0][1]


def befall(c, ep, sends):
    """What comes of a connection that is about to be lost: what is told of it, and what calls on it say from then on."""
    c.setblocking(False)
    told, useless, until = 0, 0, time.monotonic() + 30
    while time.monotonic() < until and useless < 100:
        if sends:
            first = says(lambda: sends - c.send(bytes(sends)))
        else:
            told = dict(ep.poll(1)).get(c.fileno(), 0)
            first = says(lambda: c.recv(1 << 16)) if told else None
        if first == "ECONNRESET":
            break
        useless += bool(told) and first == "EAGAIN"
    else:
        return f"{first}, told in vain {useless} times"
    told = bool(told & select.EPOLLIN), bool(told & select.EPOLLERR), bool(told & select.EPOLLHUP)
    calls = [
        lambda: c.recv(1),
        lambda: c.recv(1, socket.MSG_PEEK),
        lambda: c.send(b"x"),
        lambda: c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        lambda: c.getpeername(),
        lambda: polled(c),
        lambda: dict(ep.poll(0))[c.fileno()],
        lambda: tuple(map(len, select.select([c], [c], [c], 0))),
        lambda: c.recv(1),
    ]
    return first, told if not sends else "", [says(call) for call in calls]


def exchange(c, ep):
    while True:
        ep.poll()
        request = c.recv(8, socket.MSG_WAITALL)
        if request == b"hostile!":
            break
        c.sendall(request)


if role == "acceptor":
    if sys.argv[3:4] == ["retain"]:
        for group in sys.argv[4:]:
            with open(group + "/cgroup.procs", "w") as procs:
                procs.write(str(os.getpid()))
    listener = socket.create_server(("127.0.0.1", port))
    print("listening", flush=True)
    c, _ = listener.accept()
    ep = select.epoll()
    ep.register(c, select.EPOLLIN)
    exchange(c, ep)
    if sys.argv[3:4] in (["retain"], ["hold"]):
        # One that is kept keeps the channel.
        kept = [c] if sys.argv[3] == "hold" else []
        while True:
            if c in kept:
                c, _ = listener.accept()
                ep = select.epoll()
                ep.register(c, select.EPOLLIN)
                exchange(c, ep)
            c.setblocking(False)
            try:
                while c.send(bytes(1 << 20)):
                    pass
            except BlockingIOError:
                pass
            c.close()
            c, _ = listener.accept()
            ep = select.epoll()
            ep.register(c, select.EPOLLIN)
            exchange(c, ep)
    if sys.argv[3:4] == ["lost"]:
        # Connection by connection, by receiving or, where bytes are given, by sending so many at a time.
        for i, sends in enumerate(map(int, sys.argv[4:])):
            if i > 0:
                c, _ = listener.accept()
                ep = select.epoll()
                ep.register(c, select.EPOLLIN)
                exchange(c, ep)
            c.sendall(b"answered")
            print(befall(c, ep, sends), flush=True)
            c.close()
        sys.exit(0)
    if sys.argv[3:4] == ["narrow"]:
        # What is writable takes something.
        c.setblocking(False)
        p, vain = select.poll(), 0
        p.register(c, select.POLLOUT)
        for _ in range(10):
            if p.poll(20) and says(lambda: c.send(b"x")) == "EAGAIN":
                vain += 1
        print("in vain", vain, flush=True)
        sys.exit(0)
    if sys.argv[3:4] == ["charge"]:
        left, zeros = int(sys.argv[4]), True
        while left:
            got = c.recv(min(left, 1 << 20))
            zeros = zeros and got and not got.strip(b"\0")
            left -= len(got)
        print("zeros", zeros, flush=True)
        c.recv(1)
        sys.exit(0)
    if sys.argv[3:4] == ["journal"]:
        # Many watches beside the one that has news.
        for l in [socket.create_server(("127.0.0.1", 0)) for _ in range(800)]:
            ep.register(l.detach(), select.EPOLLIN)
        begun, cpu = time.process_time(), []
        for n in range(1, 401):
            ep.poll()
            c.recv(1)
            if n % 200 == 0:
                cpu.append(time.process_time() - begun)
                begun = time.process_time()
        # As much for the same, but for what a busy machine adds.
        print("same", cpu[1] < 5 * cpu[0] + 0.2 or cpu, flush=True)
        sys.exit(0)
    other, another = socket.socketpair()
    ep.register(other, select.EPOLLIN)
    # Its bits come all the time. Time-outs, signals and the others' news must count all the same.
    for wait in (lambda t: ep.poll(t), lambda t: select.select([c], [], [], t)[0], lambda t: c.settimeout(t) or timed(c)):
        before, begun = ticks(), time.monotonic()
        quiet = [wait(0.1) for _ in range(10)]
        print("timed out", all(not q for q in quiet))
        used, passed = ticks() - before, time.monotonic() - begun
        print("idle", used < passed / 2)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            wait(3600)
            print("not interrupted")
        except Interrupted:
            print("interrupted")
    another.send(b"x")
    print("another's news", ep.poll(60)[0][0] == other.fileno(), flush=True)
else:
    c = socket.create_connection(("127.0.0.1", port))
    # The peer asks for its cookie in the registry; an ordinary peer would ask the kernel.
    for i in range(1000):
        request = b"%8d" % (struct.unpack("=Q", c.getsockopt(socket.SOL_SOCKET, 57, 8))[0] if i == 0 else i)
        c.sendall(request)
        assert c.recv(8, socket.MSG_WAITALL) == request, i
    print("exchanged", flush=True)

