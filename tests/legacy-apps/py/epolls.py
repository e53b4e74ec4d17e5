"""What epoll says about connections, one scenario per name. Prints the same natively and under culvert.

Both ends are in this process, except where a scenario forks or starts a peer. Where "nothing" is expected,
something that happened later was seen before: nothing is waited for by the clock.
"""
import ctypes
import errno
import itertools
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

IN, OUT, ET, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT
RDHUP, HUP, ERR = select.EPOLLRDHUP, select.EPOLLHUP, select.EPOLLERR
NAMES = [(IN, "IN"), (OUT, "OUT"), (RDHUP, "RDHUP"), (HUP, "HUP"), (ERR, "ERR"), (select.EPOLLPRI, "PRI")]
CTL_ADD, CTL_DEL, CTL_MOD = 1, 2, 3
PATIENCE = 20
libc = ctypes.CDLL(None, use_errno=True)
libc.fdopen.restype = ctypes.c_void_p
libc.fclose.argtypes = [ctypes.c_void_p]


def say(what, events):
    """Prints events; `events` are (name, bits)."""
    text = [f"{n}:{'|'.join(s for b, s in NAMES if e & b)}" for n, e in sorted(events)]
    print(what, *text or ["nothing"])


def listener():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(256)
    return s


def pair(warm=True):
    """Two ends of a connection, non-blocking; warm: both directions have been used."""
    l = listener()
    a = socket.create_connection(l.getsockname())
    b, _ = l.accept()
    l.close()
    for s in (a, b):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for i in range(4 if warm else 0):
        for x, y in ((a, b), (b, a)):
            x.sendall(b"warm")
            assert y.recv(4, socket.MSG_WAITALL) == b"warm"
    a.setblocking(False)
    b.setblocking(False)
    return a, b


class Set:
    """An epoll set whose members have names."""

    def __init__(self):
        self.ep = select.epoll()
        self.names = {}

    def add(self, s, events, name):
        fd = s if isinstance(s, int) else s.fileno()
        self.ep.register(fd, events)
        self.names[fd] = name

    def mod(self, s, events):
        self.ep.modify(s, events)

    def drop(self, s):
        self.ep.unregister(s)

    def exactly(self, op, s, events=0):
        """As `add`, `mod` and `drop`; the same call twice says the same (select.epoll leaves half of the data to chance)."""
        event = struct.pack("=Iq", events, s.fileno())
        if libc.epoll_ctl(self.ep.fileno(), op, s.fileno(), event):
            raise OSError(ctypes.get_errno(), "epoll_ctl")

    def now(self, n=64):
        return [(self.names[f], e) for f, e in self.ep.poll(0, n)]

    def next(self, n=64):
        return [(self.names[f], e) for f, e in self.ep.poll(PATIENCE, n)]


def settled(s, n):
    """Waits until `n` bytes can be read, without reading them."""
    s.setblocking(True)
    assert len(s.recv(n, socket.MSG_PEEK | socket.MSG_WAITALL)) == n
    s.setblocking(False)


def drain(s):
    n = 0
    while True:
        try:
            got = s.recv(65536)
        except BlockingIOError:
            return n
        if not got:
            return n
        n += len(got)


def fill(s):
    n = 0
    while True:
        try:
            n += s.send(b"x" * 65536)
        except BlockingIOError:
            return n


def level():
    a, b = pair()
    s = Set()
    s.add(b, IN, "b")
    say("idle", s.now())
    a.send(b"12345678")
    say("data", s.next())
    say("still", s.now())
    b.recv(4)
    say("part read", s.now())
    b.recv(4)
    say("all read", s.now())
    s.mod(b, IN | OUT)
    say("writable", s.now())
    say("writable still", s.now())
    s.mod(b, 0)
    a.send(b"1")
    settled(b, 1)
    say("asked for nothing", s.now())
    s.mod(b, IN)
    say("asked again", s.now())
    s.drop(b)
    say("dropped", s.now())
    s.add(b, IN, "b again")
    say("added again", s.now())
    for _ in range(3):
        s.drop(b)
        a.send(b"2")
        settled(b, 1)
        say("data while it is out", s.now())
        say("more while it is out", s.now())
        s.add(b, IN, "b")
        say("put back", s.next())
        print(drain(b) > 0)
        say("read", s.now())
        a.send(b"3")
        say("data", s.next())


def edge():
    a, b = pair()
    s = Set()
    s.add(b, IN | ET, "b")
    say("idle", s.now())
    a.send(b"12345678")
    say("data", s.next())
    say("no new edge", s.now())
    b.recv(4)
    say("part read", s.now())
    a.send(b"9")
    say("more data", s.next())
    print(drain(b))
    say("all read", s.now())
    a.send(b"ab")
    settled(b, 2)
    print(drain(b))
    say("read before it was reported", s.now())
    a.send(b"c")
    settled(b, 1)
    s.mod(b, IN | ET)
    say("changed", s.next())
    s.mod(b, IN | OUT | ET)
    say("changed", s.next())
    say("no new edge", s.now())


def edge_out():
    a, b = pair()
    s = Set()
    s.add(b, OUT | ET, "b")
    say("first", s.next())
    say("no new edge", s.now())
    a.send(b"data")
    settled(b, 4)
    say("data is no edge for who writes", s.now())
    b.send(b"data")
    settled(a, 4)
    say("nor is what was sent", s.now())
    print(drain(a))
    say("nor is its being read", s.now())
    fill(b)
    say("full", s.now())
    while drain(a):
        pass
    say("room", s.next())
    while drain(a):
        pass
    say("no new edge", s.now())
    fill(b)
    s.mod(b, IN | OUT | ET)
    say("full, with data", s.next())
    while drain(a):
        pass
    say("room, with data", s.next())
    t = Set()
    fill(b)
    t.add(b, OUT, "b")
    say("level, full", t.now())
    while drain(a):
        pass
    say("level, room", t.next())
    say("level, room", t.now())


def oneshot():
    a, b = pair()
    s = Set()
    s.add(b, IN | ONESHOT, "b")
    a.send(b"1")
    say("fired", s.next())
    a.send(b"2")
    settled(b, 2)
    say("disabled", s.now())
    a.shutdown(socket.SHUT_WR)
    t = Set()
    t.add(b, RDHUP, "b")
    say("other set", t.next())
    say("disabled also for the end", s.now())
    s.mod(b, IN | ONESHOT)
    say("armed", s.next())
    say("disabled", s.now())
    s.mod(b, IN | RDHUP | ONESHOT | ET)
    say("armed, edge", s.next())
    say("disabled", s.now())


def oneshot_before_attach():
    """A oneshot that the kernel has fired, or not, when the connection is accepted."""
    l = listener()
    s = Set()
    fired, armed = (socket.create_connection(l.getsockname()) for _ in range(2))
    s.add(fired, OUT | ONESHOT, "fired")
    say("fired", s.next())
    s.add(armed, IN | ONESHOT, "armed")
    ends = {}
    for _ in range(2):
        c, addr = l.accept()
        ends[addr] = c
    for _ in range(5):
        for c in (fired, armed):
            ends[c.getsockname()].send(b"x")
    settled(fired, 5)
    settled(armed, 5)
    say("armed only", s.next())
    say("none", s.now())
    for c in (fired, armed):
        c.send(b"x")
        assert ends[c.getsockname()].recv(1) == b"x"
    say("none", s.now())
    s.mod(fired, IN | ONESHOT)
    say("armed again", s.next())
    say("none", s.now())


def threads():
    """Many threads in one set, oneshot: each message is handled once, one thread at a time per connection."""
    conns = [pair() for _ in range(8)]
    s = Set()
    total, rounds = 0, 60
    busy, overlaps, lock = {}, 0, threading.Lock()
    stop_r, stop_w = os.pipe()
    s.add(stop_r, IN, "stop")
    back = {}
    for i, (a, b) in enumerate(conns):
        s.add(b, IN | ONESHOT, i)
        back[b.fileno()] = b

    def work():
        nonlocal total, overlaps
        while True:
            for fd, _ in s.ep.poll(PATIENCE, 2):
                if fd == stop_r:
                    return
                with lock:
                    if busy.get(fd):
                        overlaps += 1
                    busy[fd] = True
                got = drain(back[fd])
                back[fd].send(b"y" * got)
                with lock:
                    total += got
                    busy[fd] = False
                s.mod(fd, IN | ONESHOT)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for a, _ in conns:
        a.setblocking(True)
    for _ in range(rounds):
        for a, _ in conns:
            a.send(b"x")
        for a, _ in conns:
            a.recv(1)
    os.write(stop_w, b"x")
    for w in workers:
        w.join()
    print("handled", total, "overlaps", overlaps)


def sleepers():
    """Several threads asleep in one level-triggered set: each message finds one while the others are busy."""
    conns = [pair() for _ in range(4)]
    s = Set()
    ends = {}
    for i, (a, b) in enumerate(conns):
        s.add(b, IN | ET, i)
        ends[b.fileno()] = b
    gate = threading.Barrier(4)
    got = []

    def work():
        ((fd, e),) = s.ep.poll(PATIENCE, 1)
        # Nobody goes on before everybody has been woken.
        gate.wait(PATIENCE)
        got.append((s.names[fd], e))
        drain(ends[fd])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for a, _ in conns:
        a.send(b"x")
    for w in workers:
        w.join()
    say("each", got)


def two_sets():
    a, b = pair()
    s, t = Set(), Set()
    s.add(b, IN, "level")
    t.add(b, IN | OUT | ET, "edge")
    say("first", t.next())
    a.send(b"1234")
    say("level", s.next())
    say("edge", t.next())
    say("level", s.now())
    say("edge", t.now())
    b.recv(2)
    say("level", s.now())
    say("edge", t.now())
    print(drain(b))
    say("level", s.now())
    fill(b)
    s.mod(b, OUT | ET)
    say("full", s.now())
    while drain(a):
        pass
    say("room here", s.next())
    say("room there", t.next())
    s.ep.close()
    a.send(b"5")
    say("one is closed", t.next())


def nested():
    a, b = pair()
    inner, outer = Set(), Set()
    inner.add(b, IN, "b")
    outer.add(inner.ep.fileno(), IN, "inner")
    say("idle", outer.now())
    a.send(b"1234")
    say("outer", outer.next())
    say("outer", outer.now())
    say("inner", inner.now())
    say("outer", outer.now())
    print(drain(b))
    say("read", outer.now())
    say("read", inner.now())
    a.send(b"5")
    p = select.poll()
    p.register(inner.ep.fileno(), select.POLLIN)
    print("poll", len(p.poll(PATIENCE * 1000)))
    print("select", len(select.select([inner.ep], [], [], PATIENCE)[0]))
    # What was announced is there.
    say("inner", inner.next())
    print(drain(b))
    print("poll", p.poll(0), "select", select.select([inner.ep], [], [], 0)[0])
    c, d = pair()
    inner.add(d, IN | ET, "d")
    c.send(b"x")
    say("outer", outer.next())
    say("inner", inner.next())
    say("outer", outer.now())
    # Made ready and read before anybody asked.
    c.send(b"y")
    settled(d, 2)
    print(drain(d))
    say("outer", outer.now())
    inner.mod(d, IN | OUT | ONESHOT)
    say("outer", outer.next())
    say("inner", inner.next())
    say("outer", outer.now())


def duplicates():
    """A registration lives as long as the open file: also when its number is closed, or used again."""
    a, b = pair()
    s = Set()
    number = b.detach()
    s.add(number, IN, "first")
    second = socket.socket(fileno=os.dup(number))
    second.setblocking(False)
    os.close(number)
    a.send(b"1")
    say("closed number", s.next())
    print(drain(second))
    say("read", s.now())
    c, d = pair()
    third = d.detach()
    if third != number:
        os.dup2(third, number)
        os.close(third)
    try:
        s.ep.register(number, IN)
        print("registered")
    except OSError as e:
        print(errno.errorcode[e.errno])
    c.send(b"2")
    say("new file under the old number", s.next())
    print(os.read(number, 8))
    say("read", s.now())
    a.send(b"3")
    say("old file", s.next())
    print(drain(second))
    say("read", s.now())
    a.shutdown(socket.SHUT_WR)
    say("end of the old file", s.next())
    c.send(b"4")
    print(os.read(number, 8) if select.select([number], [], [], PATIENCE)[0] else "nothing")
    print(second.recv(8))
    second.close()
    say("old file gone", s.now())
    c.close()
    say("end of the new file", s.next())
    os.close(number)
    # Two numbers of one file in one set.
    a, b = pair()
    twin = socket.socket(fileno=os.dup(b.fileno()))
    s.add(b, IN, "one")
    s.add(twin, IN | ET, "other")
    a.send(b"5")
    settled(b, 1)
    say("both", s.next())
    say("level only", s.now())
    s.drop(b)
    a.send(b"6")
    settled(b, 2)
    say("edge", s.next())
    b.close()
    a.send(b"7")
    settled(twin, 3)
    say("edge", s.next())


def ends():
    everything = IN | OUT | RDHUP
    for mode in (0, ET):
        a, b = pair()
        s = Set()
        s.add(b, everything | mode, "b")
        say("idle", s.next())
        a.send(b"1")
        a.shutdown(socket.SHUT_WR)
        t = Set()
        t.add(b, RDHUP, "b")
        t.next()
        say("shut down with data", s.next())
        print(drain(b))
        s.mod(b, everything | mode)
        say("data read", s.next())
        b.shutdown(socket.SHUT_WR)
        s.mod(b, everything | mode)
        say("both shut down", s.next())

        a, b = pair()
        s = Set()
        s.add(b, everything | mode, "b")
        say("idle", s.next())
        b.send(b"unread")
        settled(a, 6)
        a.close()
        # Level: may be seen half way; the reset comes last.
        t = Set()
        t.add(b, 0, "b")
        say("closed with unread data", t.next())
        say("closed with unread data", s.next())
        try:
            print(b.recv(8))
        except OSError as e:
            print(errno.errorcode[e.errno])
        s.mod(b, everything | mode)
        say("after the error", s.next())

        a, b = pair()
        s = Set()
        s.add(b, IN | RDHUP | mode, "b")
        a.send(b"last words")
        a.close()
        t = Set()
        t.add(b, RDHUP, "b")
        t.next()
        say("closed", s.next())
        print(drain(b))
        s.mod(b, everything | mode)
        say("read", s.next())
        b.shutdown(socket.SHUT_RD)
        s.mod(b, everything | mode)
        say("shut down for reading", s.next())


def killed():
    """A peer that is killed."""
    l = listener()
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        c = socket.create_connection(l.getsockname())
        for _ in range(8):
            c.sendall(b"ping")
            c.recv(4, socket.MSG_WAITALL)
        os.write(w, b"x")
        c.recv(1)
        os._exit(1)
    b, _ = l.accept()
    for _ in range(8):
        b.recv(4, socket.MSG_WAITALL)
        b.sendall(b"pong")
    s = Set()
    s.add(b, IN | RDHUP | ET, "b")
    say("idle", s.now())
    os.read(r, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    say("killed", s.next())
    print(b.recv(1))


def left_asleep():
    """The other end leaves for the kernel with bytes unread, while this one sleeps in a set that has nothing to say of it."""
    def client(address, done, how):
        signal.alarm(PATIENCE)
        c = socket.create_connection(address)
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(8):
            c.sendall(b"ping")
            c.recv(4, socket.MSG_WAITALL)
        c.sendall(b"last")
        while len(c.recv(4, socket.MSG_PEEK)) < 4:
            pass
        while open(f"/proc/{os.getppid()}/stat").read().rsplit(")")[1].split()[0] != "S":
            pass
        r, w = os.pipe()
        if how != "removed":
            # stdio would read it there.
            os.dup2(c.fileno(), 0)
        got = b""
        while len(got) < 4:
            got += os.read(r, os.splice(c.fileno(), w, 4 - len(got)))
        os.write(done, got)
        os._exit(0)

    for how, events in (("level", IN), ("edge", IN | ET), ("edge and room", IN | OUT | ET), ("fired", IN | ONESHOT), ("removed", IN)):
        l = listener()
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            client(l.getsockname(), w, how)
        b, _ = l.accept()
        b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set = select.epoll()
        set.register(b, events)
        set.register(r, IN)
        last = False
        while (r, IN) not in set.poll(1000, 1):
            try:
                got = b.recv(4)
                last = got == b"last"
                # To one that has ended nothing can be sent.
                if got:
                    b.send(b"pong")
            except BlockingIOError:
                pass
            if how == "removed" and last:
                set.unregister(b)
            elif events & ONESHOT and not last:
                set.modify(b, events)
            b.setblocking(False)
        print(how, os.read(r, 4), os.waitpid(pid, 0)[1])
        for s in (b, l, set):
            s.close()
        os.close(r), os.close(w)


def single():
    """One event at a time, from connections and from a pipe: each call finds one, and each gets its turn."""
    s = Set()
    conns = [pair() for _ in range(3)]
    r, w = os.pipe()
    os.write(w, b"x")
    s.add(r, IN, "pipe")
    for i, (a, b) in enumerate(conns):
        s.add(b, IN, f"conn{i}")
        a.send(b"x")
        settled(b, 1)
    for zero in (True, False):
        got = [s.now(1) if zero else s.next(1) for _ in range(16)]
        print("empty", sum(1 for g in got if not g))
        print(sorted({n for g in got for n, _ in g}))
    for a, b in conns:
        drain(b)
    print([s.now(1) for _ in range(4)])


def fairness():
    """Neither kind of event starves the other."""
    s = Set()
    conns = [pair() for _ in range(12)]
    pipes = [os.pipe() for _ in range(12)]
    for i, (a, b) in enumerate(conns):
        a.send(b"x")
        settled(b, 1)
        s.add(b, IN, f"c{i}")
    for i, (r, w) in enumerate(pipes):
        os.write(w, b"x")
        s.add(r, IN, f"p{i}")
    for n in (1, 3, 8):
        seen = set()
        for _ in range(200):
            seen |= {name for name, _ in s.now(n)}
        print(n, len(seen))
    print(len(s.now()))


def small_buffers():
    """Buffers that the program has limited hold no more than on the kernel, and wake their writer as well."""
    l = listener()
    l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    a = socket.create_connection(l.getsockname())
    b, _ = l.accept()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    a.send(b"x")
    b.recv(1)
    a.setblocking(False)
    b.setblocking(False)
    print("holds little", fill(a) < 1 << 17)
    s = Set()
    s.add(a, OUT | ET, "a")
    say("full", s.now())
    while drain(b):
        pass
    say("room", s.next())
    a.setblocking(True)
    b.setblocking(True)
    data = os.urandom(1 << 20)
    writer = threading.Thread(target=a.sendall, args=[data])
    writer.start()
    got = b""
    while len(got) < len(data):
        got += b.recv(3000)
    writer.join()
    print("same", got == data)


def masks():
    a, b = pair()
    s = Set()
    s.add(b, IN, "b")
    ran = []
    signal.signal(signal.SIGUSR1, lambda *_: ran.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    events = (ctypes.c_byte * (12 * 4))()
    empty = ctypes.c_uint64(0)

    def pwait(timeout, mask):
        ctypes.set_errno(0)
        r = libc.epoll_pwait(s.ep.fileno(), events, 4, timeout, mask, 8)
        return r, errno.errorcode.get(ctypes.get_errno(), 0) if r < 0 else 0

    print("kept out", pwait(10, None), len(ran))
    print("let in", pwait(-1, ctypes.byref(empty)), len(ran))
    print("blocked again", signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    a.send(b"x")
    settled(b, 1)
    print("event", pwait(-1, ctypes.byref(empty)), len(ran))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    drain(b)
    # A handler that runs while the thread waits, and one whose signal comes from another thread.
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    signal.signal(signal.SIGALRM, lambda *_: ran.append(2))
    print("alarm", pwait(PATIENCE * 1000, None), len(ran))


def timeouts():
    a, b = pair()
    s = Set()
    s.add(b, IN, "b")
    for t in (0, 0.001, 0.05):
        begin = time.monotonic()
        say(f"timeout {t}", [(s.names[f], e) for f, e in s.ep.poll(t)])
        print("too early" if time.monotonic() - begin < t else "in time")


def faults():
    """An array that cannot be written: EFAULT, and the event is kept."""
    a, b = pair()
    s = Set()
    s.add(b, IN, "b")
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    page = libc.mmap(None, 4096, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    bad = ctypes.c_void_p(page)
    print("nothing to say", libc.epoll_wait(s.ep.fileno(), bad, 4, 0))
    a.send(b"x")
    settled(b, 1)
    r = libc.epoll_wait(s.ep.fileno(), bad, 4, 1000)
    print(r, errno.errorcode[ctypes.get_errno()])
    say("kept", s.next())
    for args in ((s.ep.fileno(), 1, b.fileno(), bad), (s.ep.fileno(), 3, b.fileno(), bad), (s.ep.fileno(), 3, b.fileno(), None)):
        print(libc.epoll_ctl(*args), errno.errorcode[ctypes.get_errno()])
    for op, events in ((1, IN), (3, IN | select.EPOLLEXCLUSIVE), (9, IN)):
        ev = ctypes.create_string_buffer(struct.pack("=IQ", events, 0))
        print(libc.epoll_ctl(s.ep.fileno(), op, b.fileno(), ev), errno.errorcode[ctypes.get_errno()])
    print(libc.epoll_ctl(s.ep.fileno(), 2, b.fileno(), None))
    print(libc.epoll_ctl(s.ep.fileno(), 2, b.fileno(), None), errno.errorcode[ctypes.get_errno()])
    print(libc.epoll_ctl(s.ep.fileno(), 1, 1 << 19, ctypes.create_string_buffer(12)), errno.errorcode[ctypes.get_errno()])
    print(libc.epoll_ctl(b.fileno(), 2, a.fileno(), None), errno.errorcode[ctypes.get_errno()])


def exclusive():
    a, b = pair()
    s, t = Set(), Set()
    for x in (s, t):
        x.add(b, IN | select.EPOLLEXCLUSIVE, "b")
    a.send(b"x")
    settled(b, 1)
    say("one", s.next())
    say("other", t.next())
    print(drain(b))
    say("read", s.now())


def exclusive_before_attach():
    """Two sets watch a connection exclusively from before it is one; at least one is told. Such a watch cannot be changed."""
    l = listener()
    b = socket.socket()
    b.setblocking(True)
    s, t = Set(), Set()
    for x in (s, t):
        x.add(b, IN | select.EPOLLEXCLUSIVE, "b")
    b.connect(l.getsockname())
    a, _ = l.accept()
    for n in range(3):
        a.send(b"x")
        settled(b, 1)
        say("one", s.next())
        say("other", t.next())
        print(drain(b))
        say("read", s.now())
        say("read", t.now())
    try:
        s.ep.modify(b, IN)
        print("changed")
    except OSError as e:
        print(e.errno)
    s.drop(b)
    s.add(b, IN, "b")
    s.ep.modify(b, IN | OUT)
    say("anew", s.now())
    a.close()
    say("end", s.next())
    say("end", t.next())


def forked():
    """A set that was made before a fork and is used by the child alone."""
    a, b = pair()
    s = Set()
    l = listener()
    s.add(b, IN, "b")
    s.add(l, IN, "listener")
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        a.close()
        lines = []
        out = sys.stdout
        say("before anything", s.now())
        os.write(w, b"x")
        say("from the parent", s.next())
        print(drain(b))
        os.write(w, b"x")
        say("connection", s.next())
        c, _ = l.accept()
        s.add(c, IN, "c")
        say("from the parent", s.next())
        print(c.recv(8))
        c.send(b"answer")
        b.send(b"end")
        out.flush()
        os._exit(0)
    b.close()
    os.read(r, 1)
    a.send(b"1234")
    os.read(r, 1)
    c = socket.create_connection(l.getsockname())
    c.send(b"5678")
    answer = c.recv(8)
    a.setblocking(True)
    end = a.recv(8)
    os.waitpid(pid, 0)
    print(answer, end)


def shared():
    """A set that parent and child both use: what one of them registers, arms or fires, the other sees."""
    a, b = pair()
    c, d = pair()
    s = Set()
    s.add(b, IN | ONESHOT, "b")
    s.names[d.fileno()] = "d"
    turns = [os.pipe(), os.pipe()]

    def turn(mine, wait=True):
        sys.stdout.flush()
        os.write(turns[1 - mine][1], b"x")
        if wait:
            os.read(turns[mine][0], 1)

    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.read(turns[1][0], 1)
        say("fired by the parent, added by the parent", s.now())
        s.mod(b, IN | ONESHOT)
        say("armed by the child", s.now())
        say("fired by the child", s.now())
        turn(1)
        say("changed by the parent", s.now())
        turn(1, False)
        os._exit(0)
    a.send(b"1")
    say("parent", s.next())
    s.add(d, IN, "d")
    c.send(b"2")
    settled(d, 1)
    turn(0)
    say("fired by the child", s.now())
    s.mod(b, IN)
    s.drop(d)
    turn(0)
    os.waitpid(pid, 0)
    say("alone again", s.now())
    # Not of the past: a connection made now is served.
    time.sleep(0.02)
    e, f = pair()
    s.add(f, IN, "f")
    drain(b)
    e.send(b"3")
    say("new", s.next())


def kept():
    """A set and two descriptors of a connection that are kept across exec."""
    a, b = pair()
    s = Set()
    s.add(b, IN, "b")
    t = Set()
    t.add(b, IN | ET, "b")
    say("edge", t.now())
    twice = b.dup()
    a.send(b"12345678")
    settled(b, 8)
    for x in (a, b, twice, s.ep, t.ep):
        os.set_inheritable(x.fileno(), True)
    sys.stdout.flush()
    numbers = [str(x.fileno()) for x in (a, b, twice, s.ep)]
    os.execv(sys.executable, [sys.executable, __file__, "kept_on", *numbers])


def kept_on():
    a, b, twice = (socket.socket(fileno=int(n)) for n in sys.argv[2:5])
    s = Set()
    s.ep.close()
    s.ep = select.epoll.fromfd(int(sys.argv[5]))
    s.names[b.fileno()] = "b"
    say("after exec", s.next())
    print(b.recv(3), twice.recv(2), b.recv(8))
    say("read", s.now())
    a.send(b"9")
    say("more", s.next())
    print(twice.recv(8))
    c, d = pair()
    s.add(d, IN, "d")
    c.send(b"0")
    say("added", s.next())


def kept_closed():
    """A set that is kept across exec, in which a connection is watched by a number that was closed."""
    a, b = pair()
    s = Set()
    number = os.dup(b.fileno())
    s.add(number, IN, "number")
    t = Set()
    t.add(number, IN | ET, "number")
    os.close(number)
    a.send(b"1")
    settled(b, 1)
    for x in (a, b, s.ep, t.ep):
        os.set_inheritable(x.fileno(), True)
    sys.stdout.flush()
    numbers = [str(x) for x in (a.fileno(), b.fileno(), number, s.ep.fileno(), t.ep.fileno())]
    os.execv(sys.executable, [sys.executable, __file__, "kept_closed_on", *numbers])


def kept_closed_on():
    a, b = (socket.socket(fileno=int(n)) for n in sys.argv[2:4])
    number = int(sys.argv[4])
    for n in sys.argv[5:]:
        s = select.epoll.fromfd(int(n))
        print("after exec", [(fd == number, e) for fd, e in s.poll(PATIENCE)])
    print(b.recv(8))
    print("read", s.poll(0))


def closed_by_exec():
    """An exec closes a connection with a byte unread, and keeps the set that it is in: the peer is told of a reset."""
    a, b = pair()
    for x in (a, b):
        x.setblocking(True)
    if os.fork() == 0:
        b.close()
        for _ in range(20):
            a.send(b"p")
            a.recv(1)
        a.send(b"1")
        # By its state (TCP_ESTABLISHED is 1), since a call that waits would take part in what the exec asks for.
        while a.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1":
            os.sched_yield()
        for _ in range(2):
            print("send", refusal(lambda: a.send(b"x")))
        sys.stdout.flush()
        os._exit(0)
    a.close()
    for _ in range(20):
        b.recv(1)
        b.send(b"q")
    s = Set()
    s.add(b, IN, "b")
    settled(b, 1)
    os.set_inheritable(s.ep.fileno(), True)
    os.execv(sys.executable, [sys.executable, __file__, "closed_by_exec_on"])


def closed_by_exec_on():
    os.wait()


def twice():
    """Two descriptors of a connection that are kept across exec: what is read through one is read for both."""
    a, b = pair()
    other = b.dup()
    a.send(b"12345678")
    settled(b, 8)
    for x in (a, b, other):
        os.set_inheritable(x.fileno(), True)
    os.execv(sys.executable, [sys.executable, __file__, "twice_on", *(str(x.fileno()) for x in (a, b, other))])


def twice_on():
    a, b, other = (socket.socket(fileno=int(n)) for n in sys.argv[2:5])
    print(b.recv(3), other.recv(2), b.recv(8))
    a.send(b"9")
    settled(b, 1)
    print(other.recv(8))


def passed():
    """A set that another process receives."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        _, fds, _, _ = socket.recv_fds(there, 1, 1)
        s = select.epoll.fromfd(fds[0])
        say("received", [("b", e) for _, e in s.poll(PATIENCE)])
        sys.stdout.flush()
        there.send(b"x")
        os._exit(0)
    there.close()
    a, b = pair()
    s = Set()
    s.add(b, IN, "b")
    a.send(b"1")
    settled(b, 1)
    sys.stdout.flush()
    socket.send_fds(here, [b"x"], [s.ep.fileno()])
    here.recv(1)
    os.waitpid(pid, 0)
    say("sender", s.next())
    print(drain(b))
    say("read", s.now())
    a.send(b"2")
    say("more", s.next())


def refusal(what):
    try:
        what()
        return "done"
    except OSError as e:
        return errno.errorcode[e.errno]


def wait_asleep(tid):
    """Until a thread of ours sleeps."""
    while open(f"/proc/self/task/{tid}/stat").read().rsplit(")")[1].split()[0] != "S":
        os.sched_yield()


def owed():
    """Connections on the kernel, taken out of a set and put back: it may hear of that later, nobody notices."""
    a, b = pair(warm=False)
    c, d = pair(warm=False)
    l = listener()
    s = Set()
    for x, name in ((b, "b"), (d, "d"), (l, "listener")):
        s.add(x, IN, name)
    a.send(b"1")
    settled(b, 1)
    say("level", s.now())
    s.drop(b)
    say("taken out", s.now())
    print(refusal(lambda: s.drop(b)), refusal(lambda: s.mod(b, IN)))
    s.add(b, IN, "b")
    say("put back", s.now())
    s.drop(b)
    print(refusal(lambda: s.drop(b)), refusal(lambda: s.mod(b, IN)))
    s.add(b, OUT, "b")
    print(refusal(lambda: s.ep.register(b.fileno(), IN)))
    say("put back for room", s.now())
    s.drop(b)
    s.add(b, IN | ET, "b")
    say("put back for edges", s.now())
    say("no edge", s.now())
    s.mod(b, IN | ET)
    say("armed again", s.now())
    s.mod(b, IN)
    s.mod(b, IN)
    say("the same again", s.now())
    s.drop(b)
    s.add(b, IN | ONESHOT, "b")
    say("oneshot", s.now())
    s.drop(b)
    s.add(b, IN, "b")
    say("level", s.now())
    s.drop(l)
    client = socket.create_connection(l.getsockname())
    say("listener taken out", s.now() if select.select([l], [], [], PATIENCE)[0] else "no connection")
    s.add(l, IN, "listener")
    say("listener put back", s.now())
    l.accept()
    client.close()
    # Somebody looks in between: a thread that sleeps, a child, an outer set, another descriptor of the file.
    drain(b)
    got = []
    ids = []

    def look():
        ids.append(threading.get_native_id())
        got.extend(s.next())

    t = threading.Thread(target=look)
    t.start()
    while not ids:
        os.sched_yield()
    wait_asleep(ids[0])
    s.drop(b)
    a.send(b"2")
    settled(b, 1)
    c.send(b"3")
    t.join()
    say("the sleeper", got)
    drain(d)
    s.add(b, IN, "b")
    s.drop(b)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        say("the child", s.now())
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    say("the parent", s.now())
    s = Set()
    s.add(b, IN, "b")
    outer = select.poll()
    outer.register(s.ep.fileno(), select.POLLIN)
    s.drop(b)
    print("outer", outer.poll(0))
    s = Set()
    s.add(b, IN, "b")
    s.drop(b)
    twin = b.dup()
    b.close()
    say("closed, and alive as another number", s.now())
    # Alive in a message.
    here, there = socket.socketpair()
    s.add(twin, IN, "twin")
    s.drop(twin)
    socket.send_fds(here, [b"x"], [twin.fileno()])
    twin.close()
    say("closed, and alive in a message", s.now())
    # More at a time than are remembered.
    many = [pair(warm=False) for _ in range(20)]
    for i, (x, y) in enumerate(many):
        x.send(b"4")
        settled(y, 1)
        s.add(y, IN, f"m{i:02}")
    for _, y in many:
        s.drop(y)
    say("many taken out", s.now())
    for _, y in many:
        s.ep.register(y.fileno(), IN)
    for _, y in many[::2]:
        s.drop(y)
    say("half of them", s.now())


def owed_changes():
    """Connections on the kernel whose watch is changed: it may hear of that later, nobody notices."""
    a, b = pair(warm=False)
    c, d = pair(warm=False)
    for x, y in ((a, b), (c, d)):
        x.send(b"1")
        settled(y, 1)

    def watched(events):
        s = Set()
        s.add(b, events, "b")
        say("at first", s.now())
        return s

    s = watched(OUT)
    s.mod(b, IN)
    say("changed", s.now())
    s.add(d, IN, "d")
    s.mod(b, IN | OUT)
    s.mod(d, 0)
    say("both changed", s.now())
    s.mod(d, OUT)
    s.mod(d, IN)
    s.mod(d, IN)
    say("changed again and again", s.now())
    s.drop(d)
    for events in (IN, IN | OUT):
        # What the kernel has meanwhile is neither what was wanted first nor last.
        s.exactly(CTL_MOD, b, IN ^ OUT ^ events)
        s.exactly(CTL_DEL, b)
        s.exactly(CTL_ADD, b, events)
        say("changed, taken out, put back", s.now())
        s.exactly(CTL_MOD, b, events ^ OUT)
        s.exactly(CTL_DEL, b)
        s.exactly(CTL_ADD, b, events ^ OUT)
        say("the same, as it was changed", s.now())
    s.mod(b, 0)
    s.mod(b, IN | ET)
    say("armed for edges", s.now())
    say("no edge", s.now())
    s.mod(b, IN)
    s.drop(b)
    say("taken out", s.now())
    # Somebody looks in between: a thread that sleeps, a child, an outer set, another descriptor of the file.
    s = watched(0)
    got = []
    ids = []

    def look():
        ids.append(threading.get_native_id())
        got.extend(s.next())

    t = threading.Thread(target=look)
    t.start()
    while not ids:
        os.sched_yield()
    wait_asleep(ids[0])
    s.mod(b, IN)
    t.join()
    say("the sleeper", got)
    s.mod(b, OUT)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        say("the child", s.now())
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    say("the parent", s.now())
    s = watched(0)
    outer = select.poll()
    outer.register(s.ep.fileno(), select.POLLIN)
    s.mod(b, IN)
    print("outer", outer.poll(0))
    s = watched(0)
    twin = b.dup()
    s.mod(b, IN)
    b.close()
    say("closed, and alive as another number", s.now())
    s.add(d, 0, "d")
    s.mod(d, IN)
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [d.fileno()])
    d.close()
    say("closed, and alive in a message", s.now())
    twin.close()


def unseen():
    """Connections on the kernel whose watch was just changed, when a set is looked at, or a number closed, elsewhere."""
    a, b = pair(warm=False)
    a.send(b"1")
    settled(b, 1)

    def changed(first=OUT):
        s = Set()
        s.add(b, first, "b")
        say("at first", s.now())
        s.mod(b, IN)
        return s

    # A child that closes all but the set, in our memory, and lets another program have it.
    s = changed()
    subprocess.run(["true"], pass_fds=[s.ep.fileno()])
    say("after a child", s.now())
    # One that has it under another number.
    s = changed()
    look = "import select; print('the child', select.epoll.fromfd(50).poll(0))"
    sys.stdout.flush()
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", look], os.environ,
                           file_actions=[(os.POSIX_SPAWN_DUP2, s.ep.fileno(), 50)])
    os.waitpid(child, 0)
    say("after another", s.now())
    # An outer set that came in a message.
    here, there = socket.socketpair()
    sent = select.epoll()
    socket.send_fds(here, [b"x"], [sent.fileno()])
    outer = select.epoll.fromfd(socket.recv_fds(there, 1, 1)[1][0])
    s = changed(first=0)
    outer.register(s.ep.fileno(), IN)
    say("outside", [("inner", e) for _, e in outer.poll(0)])
    # stdio closes a number.
    twin = os.dup(b.fileno())
    s = Set()
    s.add(twin, OUT, "twin")
    stream = libc.fdopen(twin, b"r")
    s.mod(twin, IN)
    libc.fclose(stream)
    say("closed as a stream", s.now())


def number_back():
    """A number is closed while the connection lives on, and made again: the watch is as it was."""
    a, b = pair()
    s = Set()
    # It may be in several sets, and news may come before or after.
    for change, sets, late in itertools.product((IN | OUT, 0, None), ([s], [s, Set()]), (False, True)):
        number = os.dup(b.fileno())
        for each in sets:
            each.add(number, IN, "number")
        other = os.dup(number)
        os.close(number)
        if not late:
            a.send(b"1")
            settled(b, 1)
            for each in sets:
                say("closed", each.now())
        os.dup2(other, number)
        if late:
            a.send(b"1")
            settled(b, 1)
        for each in sets:
            say("made again", each.now())
            if change is not None:
                each.mod(number, change)
                say("changed", each.now())
            each.drop(number)
            say("taken out", each.now())
            print(refusal(lambda: each.drop(number)))
        drain(b)
        os.close(number)
        os.close(other)
    # It may as well become another connection's.
    number = os.dup(b.fileno())
    s.add(number, OUT, "number")
    os.close(number)
    c, d = pair()
    os.dup2(d.fileno(), number)
    s.add(number, IN, "number")
    c.send(b"2")
    settled(d, 1)
    print("both", sorted(e for _, e in s.now()))


def first_wait():
    """A connection that is in shared memory already comes to a set that had none, and in which a thread waits."""
    a, b = pair()
    r, w = os.pipe()
    s = Set()
    s.add(r, IN, "pipe")
    tid, said = [], []

    def work():
        tid.append(threading.get_native_id())
        said.append(s.next())
        said.append(s.next())

    worker = threading.Thread(target=work)
    worker.start()
    while not tid:
        pass
    wait_asleep(tid[0])
    s.add(b, IN, "b")
    # What this tells the sleeper is not for the program.
    wait_asleep(tid[0])
    a.send(b"1")
    worker.join()
    say("first", said[0])
    say("second", said[1])
    os.write(w, b"1")
    say("both", s.now())


def order():
    """Who had news first is reported first."""
    pairs = [pair() for _ in range(5)]
    s = Set()
    for i, (_, b) in enumerate(pairs):
        s.add(b, IN, i)
    for turn in [0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]:
        s.now()
        for i in turn:
            pairs[i][0].send(b"1")
        for i in turn:
            settled(pairs[i][1], 1)
        print([i for i, _ in s.now()])
        # What is not read is reported again, in the same order.
        print([i for i, _ in s.now()])
        for _, b in pairs:
            drain(b)


def order_kept():
    """Connections that go over to shared memory, one before the other, keep their order."""
    pairs = [pair(warm=False) for _ in range(6)]
    s = Set()
    for i, ends in enumerate(pairs):
        for j, end in enumerate(ends):
            s.add(end, IN, (i, j))
        ends[0].send(b"1")
    for _ in range(24):
        for (i, j), e in s.next():
            end = pairs[i][j]
            print(i, j, end="; ")
            if e & IN:
                end.recv(1)
                s.mod(end, OUT)
            else:
                end.send(b"1")
                s.mod(end, IN)
        print()


def hidden():
    """Who asks for a few events, and does not wait, is not shown less because of what is not for the program."""
    for how in "asked for nothing", "taken out":
        for n in 1, 2, 3, 4, 64:
            a, b = pair()
            r, w = os.pipe()
            s = Set()
            s.add(b, 0 if how == "asked for nothing" else IN, "b")
            s.add(r, IN, "pipe")
            s.now()
            s.now()
            if how == "taken out":
                s.drop(b)
            a.shutdown(socket.SHUT_WR)
            os.write(w, b"1")
            for _ in range(3):
                say(f"{how}, {n}", s.now(n))


def no_second_edge():
    """An end of receiving is nothing to the other side, nor is an end that was told before."""
    for first in (socket.SHUT_WR, socket.SHUT_RDWR):
        a, b = pair()
        e = Set()
        e.add(b, IN | ET, "b")
        b.send(b"not read")
        a.shutdown(first)
        say("ended", e.next())
        for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            a.shutdown(how)
            say(f"then {how}", e.now())
        print("read", drain(b))


def number_moved():
    """What was told is not told again because a number is closed, or is made anew, while another one keeps the connection."""
    for asked in (IN | ET, IN | OUT | RDHUP | ET):
        for ended in (False, True):
            a, b = pair()
            e = Set()
            e.add(b, asked, "b")
            e.now()
            # An option that only the kernel can honour.
            a.setsockopt(socket.SOL_SOCKET, 47, struct.pack("=I", 1 << 30))
            a.send(b"x" * 100)
            settled(b, 100)
            if ended:
                a.shutdown(socket.SHUT_WR)
                p = select.poll()
                p.register(b, RDHUP)
                p.poll(PATIENCE * 1000)
            say("data", e.now())
            say("again", e.now())
            number = b.fileno()
            f = b.dup()
            b.close()
            say("closed", e.now())
            os.dup2(f.fileno(), number)
            say("back", e.now())
            os.close(number)
            say("closed again", e.now())
            say("and again", e.now())
            if ended:
                # The kernel has something to tell of another one.
                os.dup2(f.fileno(), number)
                r, w = os.pipe()
                e.add(r, IN | ET, "pipe")
                os.write(w, b"x")
                os.close(number)
                say("beside", e.now())
                os.close(r)
                os.close(w)
            if not ended:
                a.send(b"y" * 10)
                settled(f, 110)
                say("more", e.now())
                os.dup2(f.fileno(), number)
                a.send(b"z")
                settled(f, 111)
                os.close(number)
                say("more, closed", e.now())
                a.shutdown(socket.SHUT_WR)
                p = select.poll()
                p.register(f, RDHUP)
                p.poll(PATIENCE * 1000)
            say("end", e.now())
            f.close()
            a.close()


def end_behind_bytes():
    """Whoever sleeps on a set that another process has, too, is told of an end together with the bytes that lie before it."""
    for i in range(40):
        a, b = pair()
        e = Set()
        e.add(b, IN | OUT | RDHUP | ET, "b")
        a.send(b"not read")
        settled(b, 8)
        say("data", e.next())
        r, w = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(w)
            os.read(r, 1)
            os._exit(0)
        os.close(r)
        told = []
        waiting = threading.Event()
        waiter = threading.Thread(target=lambda: (waiting.set(), told.extend(e.next())))
        waiter.start()
        waiting.wait()
        wait_asleep(waiter.native_id)
        a.shutdown(socket.SHUT_WR)
        waiter.join()
        say("ended", told)
        os.close(w)
        os.waitpid(child, 0)
        for s in (a, b):
            s.close()


def repeated():
    """What lies unread when the other side goes back to the kernel was an edge when it came."""
    a, b = pair()
    e = Set()
    e.add(b, IN | ET, "b")
    a.send(b"x" * 100)
    say("data", e.next())
    # An option that only the kernel can honour.
    a.setsockopt(socket.SOL_SOCKET, 47, struct.pack("=I", 1 << 30))
    # The lifeline has them, too, by the time that these came.
    c, d = pair()
    c.send(b"y")
    settled(d, 1)
    say("moved", e.now())
    # One number is closed, another keeps the file.
    f = b.dup()
    b.close()
    say("closed", e.now())
    a.send(b"x" * 10)
    say("more", e.next())
    say("again", e.now())
    settled(f, 110)
    print("read", drain(f))
    a.send(b"z")
    say("new", e.next())


def room_behind_a_leaver():
    """The other end goes to the kernel while this one, which has found no room, is away. The lifeline takes what lies unread at once."""
    for events in (OUT | ET, IN | OUT | ET, OUT):
        l = listener()
        go, gone = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(2 * PATIENCE)
            c = socket.create_connection(l.getsockname())
            for _ in range(100):
                c.sendall(b"x")
                c.recv(1)
            left = int(os.read(go[0], 20))
            one, other = socket.socketpair()
            socket.send_fds(one, [b"x"], [c.fileno()])
            os.write(gone[1], b"x")
            while left > 0:
                left -= len(c.recv(left))
            os.read(go[0], 1)
            os._exit(0)
        a, _ = l.accept()
        for _ in range(100):
            a.recv(1)
            a.sendall(b"x")
        a.setblocking(False)
        sets = [Set(), Set()]
        for e in sets:
            e.add(a, events, "a")
            e.next()
        sent = fill(a)
        for e in sets:
            say("full", e.now())
        os.write(go[1], b"%d" % sent)
        os.read(gone[0], 1)
        for e in sets:
            say("room", e.next())
        os.write(go[1], b"x")
        print(os.waitpid(pid, 0)[1])


def in_flight():
    """A set goes on to report a file whose last number is closed while a message that nobody has received holds it."""
    for events in (IN | OUT, IN | OUT | ET, IN | OUT | ONESHOT):
        a, b = pair()
        one, other = socket.socketpair()
        e = Set()
        e.add(b, events, "b")
        socket.send_fds(one, [b"x"], [b.fileno()])
        b.close()
        say("open", e.now())
        a.send(b"x")
        # It has come by the time that what was sent after it has.
        c, d = pair()
        c.send(b"y")
        settled(d, 1)
        say("data", e.now())
        _, fds, _, _ = socket.recv_fds(other, 1, 1)
        print("read", os.read(fds[0], 10))
        os.close(fds[0])
        say("closed", e.now())


def idle():
    """A connected pair at rest: threads asleep in epoll, poll and recv are not woken."""
    a, b = pair()
    c, d = pair()
    e, f = pair()
    s = Set()
    s.add(b, IN, "b")
    p = select.poll()
    p.register(d, select.POLLIN)
    f.setblocking(True)
    jobs = [lambda: s.ep.poll(PATIENCE), lambda: p.poll(PATIENCE * 1000), lambda: f.recv(1)]
    tids = []

    def work(job):
        tids.append(threading.get_native_id())
        job()

    workers = [threading.Thread(target=work, args=[j]) for j in jobs]
    for w in workers:
        w.start()

    def switches():
        n = 0
        for t in tids:
            for line in open(f"/proc/self/task/{t}/status"):
                if "ctxt_switches" in line:
                    n += int(line.split()[1])
        return n

    def asleep():
        return len(tids) == 3 and all(open(f"/proc/self/task/{t}/stat").read().rsplit(")")[1].split()[0] == "S" for t in tids)

    # Let them settle: no news for a while.
    last, since = -1, time.monotonic()
    while not asleep() or switches() != last:
        if asleep():
            last = switches()
        time.sleep(0.1)
        assert time.monotonic() - since < PATIENCE, "never at rest"
    time.sleep(1)
    # One for a stray wake-up by the kernel's own work.
    print("woken" if switches() - last > 3 else "left alone")
    for x in (a, c, e):
        x.send(b"x")
    for w in workers:
        w.join()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
