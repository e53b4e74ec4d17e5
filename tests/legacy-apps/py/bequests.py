"""A program with bytes unread that a busy peer has sent becomes another program, which reads them, or some, or ends before. What
the peer sees of that end, and what SO_LINGER says meanwhile, is printed for each case.

Arguments: cases. The peer calls nothing on its connection until the other program has ended.
"""
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile

SAID = b"unread" * 10


def number_of(case):
    return 2 if case == "read_from_2" else 3


def linger(s):
    return struct.unpack("ii", s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))


def set_linger(s, *value):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", *value))


def read(s, n):
    return len(s.recv(n, socket.MSG_WAITALL))


def become(case, s, program=sys.executable):
    s.set_inheritable(True)
    sys.stdout.flush()
    os.execv(program, [program, __file__, "heir", case])


def wait_for_death():
    """To be killed is all that is left."""
    print("waits", flush=True)
    signal.pause()


def killed(s):
    wait_for_death()


def killed_behind_some(s):
    print(read(s, 20))
    wait_for_death()


def killed_behind_all(s):
    print(read(s, len(SAID)))
    wait_for_death()


def killed_in_the_next(s):
    become("killed", s)


def killed_in_the_next_behind_all(s):
    print(read(s, 20))
    become("rest", s)


def rest(s):
    print(read(s, len(SAID) - 20))
    wait_for_death()


def read_from_2(s):
    print(read(s, len(SAID)))


def ends(s):
    pass


def ends_behind_all(s):
    print(read(s, len(SAID)))
    s.sendall(b"answer")


def ends_with_more(s):
    """All that was handed on is read, and what came afterwards is not."""
    print(read(s, len(SAID)))
    print("more", flush=True)
    while not s.recv(1, socket.MSG_PEEK):
        pass


def closes(s):
    s.close()
    wait_for_death()


def closes_behind_all(s):
    print(read(s, len(SAID)))
    s.close()
    wait_for_death()


def child_reads(s):
    """The child that reads all is another program, too."""
    if os.fork() == 0:
        become("ends_behind_all", s)
    os.wait()


def lingers_before(s):
    set_linger(s, 1, 7)


def lingers(s):
    print(linger(s), read(s, 20), linger(s))
    set_linger(s, 0, 9)
    print(linger(s))
    set_linger(s, 1, 8)
    print(linger(s))
    set_linger(s, 0, 3)
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"short")
    except OSError as e:
        print(e.errno)
    print(len(s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 4)), linger(s))
    print(read(s, len(SAID) - 20), linger(s))
    wait_for_death()


def resets(s):
    set_linger(s, 1, 0)
    print(read(s, len(SAID)), linger(s))


def aborts_no_more_before(s):
    set_linger(s, 1, 0)


def aborts_no_more(s):
    set_linger(s, 0, 0)
    print(linger(s), read(s, len(SAID)), linger(s))


def disconnects_before(s):
    set_linger(s, 1, 5)


def disconnects(s):
    """What is unread goes with the connection: another one, of the same socket, ends well."""
    unspecified = ctypes.create_string_buffer(16)
    print(ctypes.CDLL(None).connect(s.fileno(), unspecified, len(unspecified)), linger(s))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        s.connect(listener.getsockname())
        c, _ = listener.accept()
    s.sendall(b"hello")
    s.close()
    print(c.recv(5, socket.MSG_WAITALL), seen(lambda: c.recv(1)))


def fails_before(s):
    """No program: the exec fails, and this one goes on."""
    lingers_before(s)
    with tempfile.NamedTemporaryFile(delete=False) as f:
        f.write(b"no program")
        os.fchmod(f.fileno(), 0o700)
    try:
        become("fails", s, f.name)
    except OSError as e:
        print(e.errno)
    os.unlink(f.name)
    print(linger(s), read(s, len(SAID)), linger(s))
    s.close()
    wait_for_death()


def reader(port, case):
    s = socket.create_connection(("127.0.0.1", port))
    for _ in range(300):
        s.sendall(b"ping")
        s.recv(4)
    while len(s.recv(100, socket.MSG_PEEK)) < len(SAID):
        pass
    if s.fileno() != number_of(case):
        os.dup2(s.fileno(), number_of(case))
        s.close()
        s = socket.socket(fileno=number_of(case))
    globals().get(case + "_before", lambda s: None)(s)
    become(case, s)


def seen(what):
    try:
        return what()
    except OSError as e:
        return e.errno


def peer(case):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen(
            [sys.executable, __file__, "reader", case, str(listener.getsockname()[1])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        c, _ = listener.accept()
    for _ in range(300):
        c.recv(4)
        c.sendall(b"pong")
    c.settimeout(60)
    c.sendall(SAID)
    # The pipe ends with the last program.
    for line in child.stdout:
        print(case, line.decode(), end="")
        if line == b"waits\n":
            child.kill()
        elif line == b"more\n":
            c.sendall(b"more")
    child.wait()
    print(case, "peer:", seen(lambda: c.recv(100)), seen(lambda: c.recv(100)), flush=True)
    c.close()


if sys.argv[1] == "heir":
    globals()[sys.argv[2]](socket.socket(fileno=number_of(sys.argv[2])))
elif sys.argv[1] == "reader":
    reader(int(sys.argv[3]), sys.argv[2])
else:
    for case in sys.argv[1:]:
        peer(case)
