"""A peer sends its last bytes and is killed before it has read what it got: it has reset the connection. This side looks, asks
for the error, and sends, without having waited for anything."""
import os
import signal
import socket
import subprocess
import sys

from reset import LAST, ORDERS, act

WARM = 16
# What says that there is no connection any more, before and behind the error.
NAMES = ["n", "i", "e", "0", "2", "nlrrn", "irri", "prnrin", "gnirr", "sniers", "0rrn", "2rrn", "0grrni", "enir", "ssn"]


def peer(port):
    with socket.create_connection(("127.0.0.1", port)) as s:
        for _ in range(WARM):
            s.recv(1)
            s.sendall(b"w")
        s.recv(1)
        s.sendall(LAST)
        signal.pause()


def end(listener, order, env=None):
    """`env`: another program has the connection by then, by exec. One without culvert gets nothing that was not read."""
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
        if env is not None:
            if env is not os.environ:
                s.recv(len(LAST))
            s.set_inheritable(True)
            os.execve(sys.executable, [sys.executable, __file__, "on", str(s.fileno()), order], env)
        return list(act(s, order))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] == "on":
        print(list(act(socket.socket(fileno=int(sys.argv[2])), sys.argv[3])), flush=True)
        sys.exit()
    elif sys.argv[1:]:
        peer(int(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for order in ORDERS + NAMES:
            print(order, end(listener, order), flush=True)
        bare = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        for order in ["rrn", "grrn", "srrn", "nrri"]:
            for env in os.environ, bare:
                print(order, "on", flush=True)
                if os.fork() == 0:
                    end(listener, order, env)
                os.wait()
