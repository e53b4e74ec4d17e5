"""A peer sends its last bytes and is killed before it has read what it got: it has reset the connection. This side looks, asks
for the error, and sends, without having waited for anything."""
import os
import signal
import socket
import subprocess
import sys

from reset import LAST, ORDERS, act

WARM = 16


def peer(port):
    with socket.create_connection(("127.0.0.1", port)) as s:
        for _ in range(WARM):
            s.recv(1)
            s.sendall(b"w")
        s.recv(1)
        s.sendall(LAST)
        signal.pause()


def end(listener, order):
    child = subprocess.Popen([sys.executable, __file__, str(listener.getsockname()[1])])
    s, _ = listener.accept()
    with s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(WARM):
            s.sendall(b"w")
            s.recv(1)
        s.sendall(b"w")
        s.recv(len(LAST), socket.MSG_PEEK | socket.MSG_WAITALL)
        s.sendall(b"not read")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        return list(act(s, order))


if __name__ == "__main__":
    if sys.argv[1:]:
        peer(int(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for order in ORDERS:
            print(order, end(listener, order), flush=True)
