"""Sockets, threads and processes in two network namespaces: the one that this process is started in, and one that it makes.

    enters            a connection here; then a forked child goes to the other one, and talks to a server there
    survives          a child has a connection from its parent, and uses it in the other one when the peer was killed
    moves             a connection here, and the process goes to the other one; then its peer is killed
    connects, accepts a connection with a peer without culvert in the other one, used from here; says its ports and its cookie,
                      and goes on when a line comes
    spoofs 4|6 FLAG   a proxy here that speaks to a server in one namespace with the address and port of its client in another;
                      FLAG of IP or IPv6 lets it; and a connection between two addresses of this namespace
    serve             answers with what it is sent
    pings PORT        asks for ever
"""
import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
NEWNET = 0x40000000
SO_COOKIE = 57


class Network:
    """Another network namespace, with a loopback. In a `with` the calling thread is there."""

    def __init__(self):
        maker = threading.Thread(target=self.make)
        maker.start()
        maker.join()
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def make(self):
        assert libc.unshare(NEWNET) == 0
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self.there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def __enter__(self):
        assert libc.setns(self.there, NEWNET) == 0

    def __exit__(self, *_):
        assert libc.setns(self.home, NEWNET) == 0


def another(culvert, *words):
    """Another process of this program, in the namespace of the calling thread."""
    env = {k: v for k, v in os.environ.items() if culvert or k != "LD_PRELOAD"}
    return subprocess.Popen([sys.executable, "-u", __file__, *words], env=env, stdout=subprocess.PIPE)


def connected(port):
    c = socket.create_connection(("127.0.0.1", port))
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    return c


def ask(c, who, times, pause):
    """Pauses, so that the peer sleeps."""
    for i in range(times):
        c.sendall(b"%64d" % i)
        try:
            assert c.recv(64, socket.MSG_WAITALL) == b"%64d" % i
        except OSError as e:
            print(who, "has no answer:", e.strerror, flush=True)
            return
        time.sleep(pause)
    print(who, "has all answers", flush=True)


def serve():
    def answer(c):
        while got := c.recv(4096):
            c.sendall(got)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1])
        while True:
            threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()


def pings(port):
    c = connected(int(port))
    while True:
        c.sendall(b"x")
        if not c.recv(1):
            return
        time.sleep(0.0005)


def enters():
    other = Network()
    here = another(True, "serve")
    with other:
        there = another(True, "serve")
    c, port = connected(int(here.stdout.readline())), int(there.stdout.readline())
    ask(c, "here", 400, 0)
    ask(c, "here", 10, 0.02)
    child = os.fork()
    if child == 0:
        # The one that it has inherited as well.
        ask(c, "the child, here,", 10, 0.02)
        with other:
            ask(c, "the child, from there,", 10, 0.02)
            c.close()
            there_too = connected(port)
            ask(there_too, "the child, there,", 400, 0.001)
            ask(there_too, "the child, there,", 10, 0.05)
        os._exit(0)
    os.waitpid(child, 0)
    ask(c, "here, afterwards,", 10, 0.02)
    here.kill()
    there.kill()


def stopped(pid):
    threads = [open(f"/proc/{pid}/task/{t}/stat").read() for t in os.listdir(f"/proc/{pid}/task")]
    return all(t.rpartition(")")[2].split()[0] == "T" for t in threads)


def survives():
    other = Network()
    server = another(True, "serve")
    c = connected(int(server.stdout.readline()))
    ask(c, "here", 400, 0)
    child = os.fork()
    if child == 0:
        ask(c, "the child", 10, 0.01)
        with other:
            # More than the peer takes in a call. What it has not read resets the connection.
            os.kill(server.pid, signal.SIGSTOP)
            while not stopped(server.pid):
                pass
            c.sendall(bytes(65536))
            os.kill(server.pid, signal.SIGKILL)
            select.select([c], [], [])
            for call in (lambda: c.recv(1), lambda: c.send(b"x"), lambda: c.recv(1)):
                try:
                    print("the child is told", call())
                except OSError as e:
                    print("the child is told", e.strerror)
            sys.stdout.flush()
        os._exit(0)
    c.close()
    os.waitpid(child, 0)
    server.wait()


def moves():
    other = Network()
    server = another(True, "serve")
    c = connected(int(server.stdout.readline()))
    ask(c, "here", 400, 0)
    with other:
        ask(c, "from there", 400, 0)
        ask(c, "from there", 10, 0.05)
        thread = threading.Thread(target=ask, args=(c, "another thread", 20, 0.02))
        thread.start()
        thread.join()
        server.kill()
        server.wait()
        try:
            print("at the end", c.recv(1))
        except OSError as e:
            print("at the end", e.strerror)


def begin(c, sport, dport):
    cookie = struct.unpack("=Q", c.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    print("addresses", sport, dport, cookie, flush=True)
    sys.stdin.readline()


def connects():
    other = Network()
    with other:
        server = another(False, "serve")
        c = socket.socket()
    port = int(server.stdout.readline())
    c.connect(("127.0.0.1", port))
    begin(c, c.getsockname()[1], port)
    ask(c, "the victim", 3000, 0.0005)
    server.kill()


def accepts():
    other = Network()
    with other:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        client = another(False, "pings", str(port))
    # It lives where its listener does.
    c, _ = listener.accept()
    begin(c, c.getpeername()[1], port)
    for _ in range(3000):
        c.sendall(c.recv(64))
    print("the victim has all answers", flush=True)
    client.kill()


def spoofs(version, flag):
    """A client and a server, each in a network of its own, and the way between them leads through here, where everything that comes
    is taken in. So this process has two sockets of which each has the addresses of the other one's peer."""
    six = version == "6"
    family, bits = (socket.AF_INET6, 64) if six else (socket.AF_INET, 24)
    flag = {"IP_TRANSPARENT": (0, 19), "IPV6_FREEBIND": (41, 78)}[flag]
    ip = lambda *words: subprocess.run(["ip", f"-{version}", *words], check=True)
    address = lambda net, host: f"fd09:{net}::{host}" if six else f"10.9.{net}.{host}"
    others = [Network(), Network()]
    for net, other in enumerate(others):
        ip("link", "add", f"here{net}", "type", "veth", "peer", "name", f"there{net}")
        subprocess.run(["ip", "link", "set", f"there{net}", "netns", f"/proc/self/fd/{other.there}"], check=True,
                       pass_fds=[other.there])
        for dev, host in (f"here{net}", 1), (f"there{net}", 2):
            with other if host == 2 else contextlib.nullcontext():
                ip("address", "add", f"{address(net, host)}/{bits}", "dev", dev, *["nodad"] * six)
                ip("link", "set", dev, "up")
        with other:
            ip("route", "add", "default", "via", address(net, 1))
        ip("rule", "add", "iif", f"here{net}", "lookup", "100")
    ip("route", "add", "local", "default", "dev", "lo", "table", "100")
    # The second address of an interface.
    ip("address", "add", f"{address(1, 5)}/{bits}", "dev", "here1", *["nodad"] * six)

    def endless(c, to=None):
        while got := c.recv(4096):
            (to or c).sendall(got)
        (to or c).shutdown(socket.SHUT_WR)

    def listening(host, then):
        listener = socket.create_server(host, family=family)

        def run():
            while True:
                c, peer = listener.accept()
                then(c, peer)

        threading.Thread(target=run, daemon=True).start()
        return listener.getsockname()[1]

    def begin(*words):
        threading.Thread(target=endless, args=words, daemon=True).start()

    def proxied(c, peer):
        server = socket.socket(family)
        server.setsockopt(*flag, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(peer)
        server.connect(c.getsockname())
        begin(c, server)
        begin(server, c)

    with others[1]:
        port = listening((address(1, 2), 0), lambda c, _: begin(c))
    proxy = socket.socket(family)
    proxy.setsockopt(*flag, 1)
    proxy.bind(("", port))
    proxy.listen()
    threading.Thread(target=lambda: proxied(*proxy.accept()), daemon=True).start()
    with others[0]:
        client = socket.socket(family)
    client.settimeout(10)
    client.connect((address(1, 2), port))
    ask(client, "the client of the proxy", 400, 0)

    port = listening((address(1, 5), 0), lambda c, _: begin(c))
    near = socket.socket(family)
    near.bind((address(0, 1), 0))
    near.connect((address(1, 5), port))
    ask(near, "here", 400, 0)


if __name__ == "__main__":
    # As a listener of its own would be, the first socket of this process is made here.
    socket.socket().close()
    globals()[sys.argv[1]](*sys.argv[2:])
