"""The two ends of a connection, in one process or in two, as several scripts here need them: how they get to know each other, what
they are asked, and who waits on them."""
import array
import errno
import fcntl
import select
import socket
import threading
import zlib

# Seconds; nobody waits as long unless nothing comes.
PATIENCE = 20


def ask(s, times=20):
    """One end's part of an exchange; `answer` is the other's."""
    for _ in range(times):
        s.sendall(b"ping")
        assert s.recv(4, socket.MSG_WAITALL) == b"pong"


def answer(s, times=20):
    for _ in range(times):
        assert s.recv(4, socket.MSG_WAITALL) == b"ping"
        s.sendall(b"pong")


def exchange(a, b, times=20):
    """Both parts, in one process."""
    for _ in range(times):
        a.sendall(b"ping"), b.recv(4), b.sendall(b"pong"), a.recv(4)


def pair(before=lambda listener, client: None):
    """A client and its server, which have talked a little: on rings where they can be. `before` sees their sockets first."""
    listener, client = socket.socket(), socket.socket()
    before(listener, client)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    for s in (client, server):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    exchange(client, server)
    return client, server


def asked(s, request):
    """What an ioctl says that tells a number."""
    said = array.array("i", [-1])
    fcntl.ioctl(s, request, said)
    return said[0]


def outcome(call):
    """What a call returns, or its error; of bytes how many, and a sum over them."""
    try:
        got = call()
    except OSError as e:
        return errno.errorcode[e.errno]
    return (len(got), zlib.crc32(got) & 0xFFFF) if isinstance(got, bytes) else got


def polled(s, events, seconds=PATIENCE):
    p = select.poll()
    p.register(s, events)
    return [e for _, e in p.poll(seconds * 1000)]


def epolled(s, events):
    p = select.epoll()
    p.register(s, events)
    return [e for _, e in p.poll(PATIENCE)]


def state(thread):
    """`S`: it sleeps."""
    with open(f"/proc/self/task/{thread.native_id}/stat") as f:
        return f.read().rpartition(")")[2].split()[0]


def waiter(wait):
    """A thread that sleeps in `wait`, or has returned: what it was told (a list), and whether it has (an event)."""
    told, waiting, over = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (waiting.set(), told.append(wait()), over.set()), daemon=True)
    thread.start()
    waiting.wait()
    # One that waits for the interpreter's lock sleeps, too, but not while this one lets go of it.
    asleep = 0
    while asleep < 3 and not over.wait(0.01):
        asleep = asleep + 1 if state(thread) == "S" else 0
    return told, over
