"""A program with bytes unread that a killed peer had sent starts others, which inherit the connection, and forks: it, its child and
what it has started read in turn, and each byte is read once. Prints what each of them has read.
"""
import os
import signal
import socket
import subprocess
import sys

SAID = bytes(range(60))
PIECE = 6


def peer(port):
    s = socket.create_connection(("127.0.0.1", port))
    for _ in range(300):
        s.sendall(b"ping")
        s.recv(4)
    s.sendall(SAID)
    signal.pause()


def read(who, s, n=PIECE):
    try:
        print(who, s.recv(n, socket.MSG_WAITALL).hex(), flush=True)
    except OSError as e:
        print(who, e.errno, flush=True)


def main():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen([sys.executable, __file__, "peer", str(listener.getsockname()[1])])
        c, _ = listener.accept()
    for _ in range(300):
        c.recv(4)
        c.sendall(b"pong")
    while len(c.recv(100, socket.MSG_PEEK)) < len(SAID):
        pass
    child.kill()
    child.wait()
    c.set_inheritable(True)
    heard, go = os.pipe()
    os.set_inheritable(heard, True)
    image = os.posix_spawn(sys.executable, [sys.executable, __file__, "image", str(c.fileno()), str(heard)], os.environ)
    for _ in range(2):
        fork = os.fork()
        if fork == 0:
            read("a child", c)
            # Its part in the connection is over before it ends.
            c.close()
            os._exit(0)
        os.waitpid(fork, 0)
        read("this one", c)
    os.write(go, b".")
    os.waitpid(image, 0)
    read("this one", c, 2 * len(SAID))


if sys.argv[1:2] == ["peer"]:
    peer(int(sys.argv[2]))
elif sys.argv[1:2] == ["image"]:
    os.read(int(sys.argv[3]), 1)
    read("a program", socket.socket(fileno=int(sys.argv[2])))
else:
    main()
