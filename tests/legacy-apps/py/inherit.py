"""Sockets that children inherit or are handed: subprocess streams, pass_fds, fork, SCM_RIGHTS, dup."""
import array
import hashlib
import os
import socket
import subprocess
import sys

role, port = sys.argv[1], int(sys.argv[2])

# Reads one line from the socket given by number, answers it, and leaves the rest to others.
CHILD = """
import socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
line = b''
while not line.endswith(b'\\n'):
    line += s.recv(1)
s.sendall(b'child ' + line)
s.detach()
"""


def warm(f):
    """Exchanges enough for the connection to be on its best path."""
    for i in range(40):
        f.write(b"ping %d\n" % i)
        f.flush()
        assert f.readline() == b"ping %d\n" % i


def answer_pings(conn, n=40):
    for _ in range(n):
        line = b""
        while not line.endswith(b"\n"):
            line += conn.recv(1)
        conn.sendall(line)


def server():
    with socket.create_server(("127.0.0.1", port), backlog=16) as listener:
        while True:
            conn, _ = listener.accept()
            with conn:
                kind = b""
                while not kind.endswith(b"\n"):
                    more = conn.recv(1)
                    if not more:
                        break
                    kind += more
                if not kind:
                    continue
                answer_pings(conn)
                handlers[kind.strip().decode()](conn)


def as_stdio(conn):
    subprocess.run(["sha256sum"], stdin=conn, stdout=conn, check=True)


def as_stdio_bytewise(conn):
    subprocess.run(["/usr/bin/python3.11", "-c", "import sys\nfor l in sys.stdin: print(l.strip()[::-1], flush=True)"],
                   stdin=conn, stdout=conn, check=True)


def passed(conn):
    for _ in range(3):
        subprocess.run([sys.executable, "-c", CHILD, str(conn.fileno())], pass_fds=[conn.fileno()], check=True)
        answer_pings(conn, 5)


def forked(conn):
    for i in range(4):
        pid = os.fork()
        if pid == 0:
            answer_pings(conn, 10)
            os._exit(0)
        os.waitpid(pid, 0)
        answer_pings(conn, 10)


def handed(conn):
    """A child gets the connection by SCM_RIGHTS while the parent gives it up."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        conn.close()
        _, extra, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
        fds = array.array("i")
        fds.frombytes(extra[0][2][:4])
        got = socket.socket(fileno=fds[0])
        answer_pings(got, 50)
        while data := got.recv(65536):
            got.sendall(data.upper())
        os._exit(0)
    theirs.close()
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [conn.fileno()]))])
    conn.close()
    os.waitpid(pid, 0)


def duplicated(conn):
    other = conn.dup()
    answer_pings(conn, 10)
    conn.close()
    answer_pings(other, 10)
    third = os.dup2(other.fileno(), 200)
    other.close()
    answer_pings(socket.socket(fileno=third), 10)


handlers = {f.__name__: f for f in (as_stdio, as_stdio_bytewise, passed, forked, handed, duplicated)}


def client():
    body = b"The quick brown fox\n" * 30_000
    for name in handlers:
        with socket.create_connection(("127.0.0.1", port)) as conn, conn.makefile("rwb") as f:
            f.write(name.encode() + b"\n")
            f.flush()
            warm(f)
            if name == "as_stdio":
                conn.sendall(body)
                conn.shutdown(socket.SHUT_WR)
                answer = f.read()
            elif name == "as_stdio_bytewise":
                answer = b""
                for i in range(50):
                    conn.sendall(b"word%d\n" % i)
                    answer += f.readline()
                conn.shutdown(socket.SHUT_WR)
                answer += f.read()
            else:
                answer = b""
                for i in range({"passed": 18, "forked": 80, "handed": 50, "duplicated": 30}[name]):
                    conn.sendall(b"again %d\n" % i)
                    answer += f.readline()
                if name == "handed":
                    conn.sendall(body[:5000])
                conn.shutdown(socket.SHUT_WR)
                answer += f.read()
            print(name, len(answer), hashlib.sha256(answer).hexdigest())


server() if role == "server" else client()
