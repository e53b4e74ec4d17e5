"""A program with bytes unread becomes a shell, which hands the connection on: to a program under another number, to a child,
to one after the other. What each of them reads and what the peer sees at the end is printed, for one chain after the other.

The peer sleeps in `recv`, or is busy outside of every call on sockets (`busy`) until the last program of the chain has read.
"""
import os
import socket
import subprocess
import sys

from ends import answer, ask

SAID = b"".join(b"%04d:line\n" % i for i in range(5))

CHAINS = {
    "zero": "exec head -c 50 <&3 >&2",
    "zero-sh": "exec sh -c 'read x; echo $x >&2; exec head -c 40 >&2' <&3",
    "zero-bash": "exec bash -c 'read x; read y; echo $x $y >&2; head -c 30 >&2' <&3",
    "zero-stdio": "exec sed -u q <&3 >&2",
    "nine": "exec bash -c 'for i in 1 2 3 4 5; do read -u 9 x; echo $x >&2; done' 9<&3 3<&-",
    "child": "bash -c 'for i in 1 2 3 4 5; do read -u 3 x; echo $x >&2; done'",
    "children": "for i in 1 2 3 4 5; do bash -c 'read -u 3 x; echo $x >&2'; done",
    "turns": "bash -c 'read -u 3 x; echo $x >&2'; exec bash -c 'for i in 1 2 3 4; do read -u 3 x; echo $x >&2; done'",
    "python": "exec python3 -c 'import os; os.write(2, os.read(3, 50))'",
    "python-child": "python3 -c 'import os; os.write(2, os.read(3, 30))'; python3 -c 'import os; os.write(2, os.read(3, 20))'",
    "together": "for i in 1 2 3 4 5; do python3 -c 'import os; os.write(2, os.read(3, 10))' & done; wait",
    "unread": "bash -c 'read -u 3 x; echo $x >&2'",
}


def state(pid):
    """`S`: asleep."""
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0]


def reader(port, chain, how):
    s = socket.create_connection(("127.0.0.1", port))
    ask(s, 300)
    while len(s.recv(50, socket.MSG_PEEK)) < 50:
        pass
    while how == "recv" and state(os.getppid()) != "S":
        pass
    if s.fileno() != 3:
        os.dup2(s.fileno(), 3)
        s.close()
    os.set_inheritable(3, True)
    os.execv("/bin/sh", ["sh", "-c", chain])


def peer(how, chain):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, __file__, "reader", str(port), CHAINS[chain], how],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        c, _ = listener.accept()
    answer(c, 300)
    c.settimeout(60)
    c.sendall(SAID)
    if how == "busy":
        # The pipe ends with the last program of the chain.
        said = child.stderr.read()
    try:
        end = f"end after {len(c.recv(100))} bytes"
    except OSError as e:
        end = str(e)
    if how == "recv":
        said = child.stderr.read()
    child.wait()
    if chain == "together":
        said = b"".join(sorted(said.splitlines(keepends=True)))
    print(chain, said.decode(), end, flush=True)
    c.close()


if sys.argv[1] == "reader":
    reader(int(sys.argv[2]), *sys.argv[3:5])
else:
    for chain in sys.argv[2:]:
        peer(sys.argv[1], chain)
