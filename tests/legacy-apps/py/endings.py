"""Options by which the kernel ends a connection, or a close waits or resets it. Both ends are here, and the connection is on rings
where it can be. argv[1] names the case."""
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

from ends import pair

LINGER2, KEEPIDLE, KEEPINTVL, KEEPCNT, USER_TIMEOUT, INQ = 8, 4, 5, 6, 18, 36


def name(call):
    """What a call comes to."""
    try:
        return call()
    except OSError as e:
        return errno.errorcode[e.errno]


def keepalive():
    """The network goes away under idle connections: those that ask for it are ended by their probes. In a network namespace of
    this program's own, by root."""
    waiting = {}
    for limit in (0, 700):
        for how in ("receive", "poll", "edge", "away"):
            client, server = pair()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in (KEEPIDLE, KEEPINTVL):
                client.setsockopt(socket.IPPROTO_TCP, option, 1)
            client.setsockopt(socket.IPPROTO_TCP, KEEPCNT, 2)
            client.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, limit)
            waiting[limit, how] = client, server
    other, _ = without = pair()
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    for (limit, how), (client, server) in waiting.items():
        if how == "receive":
            print(limit, how, name(lambda: client.recv(9)))
        elif how == "poll":
            p = select.poll()
            p.register(client, select.POLLIN)
            print(limit, how, p.poll(30_000)[0][1], name(lambda: client.recv(9)))
        elif how == "edge":
            p = select.epoll()
            p.register(client, select.EPOLLIN | select.EPOLLET)
            print(limit, how, p.poll(30)[0][1], name(lambda: client.recv(9)))
        else:
            time.sleep(2)
            print(limit, how, name(lambda: client.send(b"x")), name(lambda: client.recv(9)))
    print("without", other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def linger():
    """What a close with SO_LINGER leaves to a peer that reads later, and that it waits for what has not been taken."""
    def drain(s):
        got = 0
        try:
            while data := s.recv(100_000):
                got += len(data)
            return got, "end"
        except OSError as e:
            return got, errno.errorcode[e.errno]

    for how in ((0, 0), (1, 0), (1, 1)):
        for size in (0, 1000, 60_000, 1_000_000):
            for unread in (0, 10):
                client, server = pair()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", *how))
                if unread:
                    server.send(b"x" * unread)
                    select.select([client], [], [])
                client.sendall(b"x" * size)
                begun = time.monotonic()
                client.close()
                waited = time.monotonic() - begun > 0.7
                got, end = drain(server)
                # Of what the peer's kernel has not taken a reset drops an uncertain part.
                if size <= 60_000 or end == "end":
                    print(how, size, unread, got, end)
                if how == (1, 1) and size == 1_000_000 and not unread:
                    print("waited", waited)
                print(end, name(lambda: server.send(b"y")), name(lambda: server.send(b"y")))
    for seconds in (-1, 1, 5):
        client, server = pair()
        client.setsockopt(socket.IPPROTO_TCP, LINGER2, seconds)
        client.send(b"abc")
        client.close()
        print("linger2", seconds, drain(server))


def killed():
    """What is said of the rest (TCP_INQ) when the peer is killed: its end counts as one, unless it had not read everything."""
    def receive(s):
        data, control, _, _ = s.recvmsg(20, 64)
        return len(data), [struct.unpack("i", value)[0] for _, _, value in control]

    for unread in (0, 10):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        pid = os.fork()
        if pid == 0:
            peer = socket.socket()
            peer.connect(listener.getsockname())
            for _ in range(100):
                peer.sendall(b"ping"), peer.recv(4)
            peer.sendall(b"y" * 50)
            if unread:
                peer.recv(1, socket.MSG_PEEK)
            os.kill(os.getpid(), signal.SIGKILL)
        s, _ = listener.accept()
        s.setsockopt(socket.IPPROTO_TCP, INQ, 1)
        for _ in range(100):
            s.recv(4), s.sendall(b"pong")
        s.send(b"z" * unread)
        os.waitpid(pid, 0)
        # The kernel has the end, and nothing has looked for it: TCP_ESTABLISHED is 1.
        while s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1:
            time.sleep(0.01)
        print(unread, [name(lambda: receive(s)) for _ in range(5)])


globals()[sys.argv[1]]()
