"""What a program is told of a connection that it inherits, and whose peer was killed with bytes unread.

Argument: how. The peer is another process; the program that inherits tries the calls that are named.
"""
import os
import select
import signal
import socket
import subprocess
import sys

CHILD = """
import os, select, socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
s.setblocking(False)
def note(what, call):
    try:
        print(what, call(), end="; ")
    except OSError as e:
        print(what, type(e).__name__, end="; ")
p = select.poll()
p.register(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
note("poll", lambda: [hex(e) for _, e in p.poll(0)])
for call in sys.argv[2].split(","):
    note(call, {
        "send": lambda: s.send(b"x"),
        "recv": lambda: s.recv(10),
        "error": lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    }[call])
print(flush=True)
"""


def peer(port, came):
    """Exchanges, says when more has come, and reads no more."""
    s = socket.create_connection(("127.0.0.1", port))
    for _ in range(400):
        s.sendall(b"x")
        if s.recv(1) != b"y":
            os._exit(3)
    s.recv(1, socket.MSG_PEEK)
    os.write(came, b"x")
    signal.pause()


def case(calls, first, how, environment):
    come, came = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            peer(listener.getsockname()[1], came)
        s, _ = listener.accept()
    for _ in range(400):
        assert s.recv(1) == b"x"
        s.sendall(b"y")
    s.sendall(b"not read " * 30)
    os.read(come, 1)
    os.close(come)
    os.close(came)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    # The kernel ends the connection behind the process.
    p = select.poll()
    p.register(s, select.POLLRDHUP)
    p.poll(20000)
    if first:
        # This process is told; nothing is left to tell.
        try:
            print("here", s.recv(1))
        except OSError as e:
            print("here", type(e).__name__)
    s.set_inheritable(True)
    args = [sys.executable, "-c", CHILD, str(s.fileno()), calls]
    print(how, calls, first, end=": ", flush=True)
    if how == "spawn":
        pid = os.posix_spawn(sys.executable, args, environment)
    else:
        pid = os.fork()
        if pid == 0:
            os.execve(sys.executable, args, environment)
    os.waitpid(pid, 0)


plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
for environment in (dict(os.environ), plain):
    for how in ("exec", "spawn"):
        for first in (False, True):
            for calls in ("send,send,recv,recv", "recv,recv,send,send", "error,error,recv,send"):
                case(calls, first, how, environment)
