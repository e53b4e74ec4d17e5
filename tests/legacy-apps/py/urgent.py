"""Urgent data behind bytes that lie unread, wherever they are: a receive ends at the mark (tcp_recvmsg_locked), no byte comes twice,
and who sleeps is woken. Both ends are here, and the connection is on rings where it can be. argv[1] names the case."""
import random
import select
import socket
import sys
import termios

from ends import PATIENCE, asked, epolled, outcome, pair, polled, waiter

SIOCATMARK = 0x8905
OOB = socket.MSG_OOB


def marks():
    """Bytes, urgent ones among them, and bytes; read in one go, piece by piece, or after a look."""
    for back in (False, True):
        for first in (b"", b"before"):
            for urgent in ((b"!",), (b"abc!",), (b"!", b"def?")):
                for inline in (0, 1):
                    for size, flags in ((100, 0), (4, 0), (100, socket.MSG_PEEK), (100, socket.MSG_WAITALL)):
                        a, b = pair()
                        if back:
                            a, b = b, a
                        b.setblocking(False)
                        b.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
                        a.send(first)
                        for some in urgent:
                            a.send(some, OOB)
                        a.send(b"after")
                        line = [back, first, urgent, inline, size, flags, asked(b, SIOCATMARK), asked(b, termios.FIONREAD)]
                        for _ in range(5):
                            line += [outcome(lambda: b.recv(size, flags)), asked(b, SIOCATMARK)]
                            if flags == socket.MSG_PEEK:
                                line += [outcome(lambda: b.recv(3)), outcome(lambda: b.recv(1, OOB | flags))]
                        line.append(outcome(lambda: b.recv(1, OOB)))
                        print(*line)
                        b.send(b"answer")
                        print(outcome(lambda: a.recv(100)))


def asleep():
    """Who waits when the urgent byte comes."""
    all_of = socket.MSG_WAITALL
    for name, urgent, wait in (
        ("recv", b"abc!", lambda s: outcome(lambda: s.recv(100))),
        ("waitall", b"!", lambda s: outcome(lambda: s.recv(100, all_of))),
        ("waitall abc", b"abc!", lambda s: outcome(lambda: s.recv(100, all_of))),
        ("peek", b"!", lambda s: outcome(lambda: s.recv(100, all_of | socket.MSG_PEEK))),
        ("poll", b"!", lambda s: polled(s, select.POLLPRI)),
        ("select", b"!", lambda s: [len(some) for some in select.select([], [], [s], PATIENCE)]),
        ("epoll", b"!", lambda s: epolled(s, select.EPOLLPRI)),
        ("edge", b"!", lambda s: epolled(s, select.EPOLLPRI | select.EPOLLET)),
    ):
        for first in (b"", b"before"):
            if urgent == b"!" and not first and name in ("waitall", "peek"):
                continue  # it goes on waiting
            if first and name == "recv":
                continue  # it does not wait
            a, b = pair()
            a.send(first)
            told, over = waiter(lambda: wait(b))
            early = over.wait(0.2)
            a.send(urgent, OOB)
            print(name, first, early, over.wait(PATIENCE / 2), told, asked(b, SIOCATMARK))
            b.setblocking(False)
            for _ in range(3):
                print(outcome(lambda: b.recv(100)), outcome(lambda: b.recv(1, OOB)), asked(b, SIOCATMARK))


def steps(seed):
    """Steps by chance, of two ends that do not wait."""
    r = random.Random(seed)
    ends = pair()
    for s in ends:
        s.setblocking(False)
    sent, inline = [0, 0], [0, 0]
    kinds = "send " * 9 + "urgent " * 5 + "recv " * 6 + "peek peek read mark mark count count inline poll poll poll all message"
    for step in range(r.randrange(5, 40)):
        i = r.randrange(2) if r.random() < 0.7 else 0
        s = ends[i]
        what = r.choice(kinds.split())
        n = r.choice([1, 2, 3, 10, r.randrange(1, 40), 1000 if what == "recv" else 1])
        if what in ("send", "urgent"):
            data = bytes((sent[i] + j) * 7 % 251 for j in range(n))
            got = outcome(lambda: s.send(data, OOB if what == "urgent" else 0))
            sent[i] += got if isinstance(got, int) else 0
        elif what in ("recv", "peek", "all"):
            flags = {"recv": 0, "peek": socket.MSG_PEEK, "all": socket.MSG_WAITALL}[what]
            got = outcome(lambda: s.recv(n, flags))
        elif what == "message":
            got = outcome(lambda: s.recvmsg(n)[0])
        elif what == "read":
            flags = OOB | r.choice((0, 0, socket.MSG_PEEK))
            got = outcome(lambda: s.recv(1, flags))
        elif what == "mark":
            got = asked(s, SIOCATMARK)
        elif what == "count":
            got = asked(s, termios.FIONREAD)
        elif what == "poll":
            got = polled(s, select.POLLIN | select.POLLPRI | select.POLLRDHUP, 0)
        else:
            inline[i] = 1 - inline[i]
            got = s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline[i])
        print(seed, step, i, what, n, got)
    for s in ends[:: r.choice((1, -1))]:
        print(seed, [outcome(lambda: s.recv(1000)) for _ in range(6)])
        if r.randrange(2):
            s.shutdown(socket.SHUT_WR)
        else:
            s.close()
        other = ends[0] if s is ends[1] else ends[1]
        if other.fileno() >= 0:
            polled(other, select.POLLRDHUP)
    for s in ends:
        s.close()


def chance():
    for seed in range(400):
        steps(seed)


def watched():
    """What a set tells that is asked again and again: of bytes, of an urgent byte behind as many answers without one, and of bytes again."""
    IN, PRI, ET = select.EPOLLIN, select.EPOLLPRI, select.EPOLLET
    for how in (0, ET):
        for answers in (0, 1, 5):
            for later in (False, True):
                a, b = pair()
                b.setblocking(False)
                ep = select.epoll()
                ep.register(b, how | (IN if later else IN | PRI))
                told = lambda seconds=PATIENCE: [e for _, e in ep.poll(seconds)]
                line = [how, answers, later]
                for _ in range(answers):
                    a.send(b"bytes")
                    line += [told(), outcome(lambda: b.recv(100)), told(0)]
                    b.send(b"answer"), a.recv(100)
                a.send(b"!", OOB)
                if later:
                    polled(b, select.POLLPRI)
                    ep.modify(b, how | IN | PRI)
                    # The kernel's set may tell of that once more.
                line.append(told())
                again = told(0)
                if not (later and how):
                    line.append(again)
                line += [outcome(lambda: b.recv(1, OOB)), told(0), outcome(lambda: b.recv(100))]
                for _ in range(2):
                    a.send(b"bytes")
                    line += [told(), outcome(lambda: b.recv(100)), told(0)]
                a.send(b"?", OOB)
                print(*line, told(), outcome(lambda: b.recv(1, OOB)))


globals()[sys.argv[1]]()
