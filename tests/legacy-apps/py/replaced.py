"""A number is given to another file while a thread is in a call on it: the call goes on with the file that it began with.

Argument: the case. Both ends are in this process. Prints the same natively and under culvert.
"""
import os
import socket
import struct
import sys
import tempfile
import threading

# ppoll, as culvert waits; else the call itself.
WAITING = {b"271", b"0", b"1", b"40", b"44", b"45"}


def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for s in (a, b):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for x, y in ((a, b), (b, a)) * 4:
        x.sendall(b"warm")
        assert y.recv(4, socket.MSG_WAITALL) == b"warm"
    return a, b


def begin(call):
    """Runs `call` in a thread, until it waits in the kernel."""
    result, tid = [], []

    def run():
        tid.append(threading.get_native_id())
        try:
            result.append(call())
        except OSError as e:
            result.append(e.strerror)

    t = threading.Thread(target=run, daemon=True)
    t.start()
    while not tid or open(f"/proc/self/task/{tid[0]}/syscall", "rb").read().split()[0] not in WAITING:
        os.sched_yield()

    def end():
        t.join(30)
        return result[0] if result else "it hangs"

    return end


def to_the_kernel(s):
    """An option that only the kernel can honour."""
    s.setsockopt(socket.SOL_SOCKET, 47, struct.pack("=I", 1 << 30))


def others(f):
    """Another connection, with the number `f` besides its own."""
    c, d = pair()
    os.dup2(d.fileno(), f)
    return c, d


def left(s):
    s.setblocking(False)
    try:
        return len(s.recv(1 << 24))
    except BlockingIOError:
        return "nothing"


def receive(kernel, last, passed=False):
    a, b = pair()
    f = b.detach() if last else os.dup(b.fileno())
    if passed:
        # For what looks only, there are two of them, and the one is asked for by its number.
        looking = socket.socket(fileno=f)
        end = begin(lambda: looking.recv(100, socket.MSG_PEEK))
    else:
        end = begin(lambda: os.read(f, 100))
    if passed:
        # It is the kernel's from now on, under the thread that waits.
        one, other = socket.socketpair()
        socket.send_fds(one, [b"x"], [f])
        to_the_kernel(a)
    c, d = others(f)
    if kernel:
        to_the_kernel(a)
    a.sendall(b"for the first")
    print("read", end())
    c.sendall(b"for the second")
    print("then", os.read(f, 100))


def send(kernel, last, file=False):
    a, b = pair()
    f = b.detach() if last else os.dup(b.fileno())
    size = 32 << 20
    with tempfile.TemporaryFile() as t:
        t.truncate(size)
        call = (lambda: os.sendfile(f, t.fileno(), 0, size)) if file else (lambda: os.write(f, bytes(size)))
        end = begin(call)
        c, d = others(f)
        if kernel:
            to_the_kernel(a)
        got = 0
        while got < size:
            n = len(a.recv(1 << 20))
            if n == 0:
                break
            got += n
        print("sent", end(), "came", got, "to the other", left(c))


CASES = {
    "receive": lambda: receive(False, False),
    "receive_kernel": lambda: receive(True, False),
    "receive_last": lambda: receive(False, True),
    "receive_last_kernel": lambda: receive(True, True),
    # The waiting thread may or may not have heard of it when its number is given away.
    "receive_passed": lambda: [receive(False, False, True) for _ in range(8)],
    "send": lambda: send(False, False),
    "send_kernel": lambda: send(True, False),
    "send_last": lambda: send(False, True),
    "send_last_kernel": lambda: send(True, True),
    "sendfile": lambda: send(False, False, True),
    "sendfile_kernel": lambda: send(True, False, True),
}
for name in sys.argv[1:] or CASES:
    print(name, flush=True)
    CASES[name]()
