"""Who waits for a connection is woken by what another thread, or another process that holds the connection, does with it on this
side, as the kernel wakes it: a low-water mark that is lowered (tcp_set_rcvlowat), a sending side that is shut down (inet_shutdown).
Both ends are here, and the connection is on rings where it can be. argv[1] names the case."""
import os
import select
import socket
import sys
import threading

from ends import pair

PATIENCE = 20


def polled(s, events):
    p = select.poll()
    p.register(s, events)
    return lambda: [e for _, e in p.poll(PATIENCE * 1000)]


def selected(s, events):
    read, write = ([s], []) if events == select.POLLIN else ([], [s])
    return lambda: [len(some) for some in select.select(read, write, [], PATIENCE)]


def epolled(s, events):
    p = select.epoll()
    p.register(s, events)
    return lambda: [e for _, e in p.poll(PATIENCE)]


def edged(s, events):
    p = select.epoll()
    p.register(s, events | select.EPOLLET)
    print("first", [e for _, e in p.poll(0)])
    return lambda: [e for _, e in p.poll(PATIENCE)]


def woken(name, by, wait, act):
    """Whether `wait` ends by `act` of another thread, or of a process that a fork made."""
    told = []
    waiting = threading.Event()
    over = threading.Event()
    waiter = threading.Thread(target=lambda: (waiting.set(), told.append(wait()), over.set()), daemon=True)
    waiter.start()
    waiting.wait()
    early = over.wait(0.2)
    if by == "child":
        child = os.fork()
        if child == 0:
            act()
            os._exit(0)
        os.waitpid(child, 0)
    else:
        act()
    print(name, by, early, over.wait(PATIENCE / 2), told)


def child_woken(name, way, s, events, act):
    """What a process that a fork made, and that waits in a way of its own, is told of what this one does."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        wait = way(s, events)
        os.write(told, b"x")
        print(name, "in a child", wait())
        os._exit(0)
    os.read(ready, 1)
    threading.Event().wait(0.2)
    act()
    os.waitpid(child, 0)
    os.close(ready), os.close(told)


def lowered():
    for way in (polled, selected, epolled, edged):
        client, server = pair()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        client.send(b"x" * 50)
        child_woken(way.__name__, way, server, select.POLLIN,
                    lambda: server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10))
    for by in ("thread", "child"):
        for way in (polled, selected, epolled, edged):
            for low in (60, 10):
                client, server = pair()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
                client.send(b"x" * 50)
                wait = way(server, select.POLLIN)
                if low == 10:
                    woken(f"{way.__name__}", by, wait,
                          lambda: server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low))
                else:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
                    print(way.__name__, low, select.select([server], [], [], 0)[0] == [])
                print(len(server.recv(99, socket.MSG_DONTWAIT)))


def full(s):
    s.setblocking(False)
    try:
        while True:
            s.send(b"x" * 65536)
    except BlockingIOError:
        s.setblocking(True)


def outcome(call):
    try:
        return call()
    except OSError as e:
        return e.strerror


def shut():
    for way in (polled, selected, epolled, edged):
        client, server = pair()
        full(client)
        child_woken(way.__name__, way, client, select.POLLOUT, lambda: client.shutdown(socket.SHUT_WR))
    for by in ("thread", "child"):
        for way in (polled, selected, epolled, edged):
            client, server = pair()
            full(client)
            wait = way(client, select.POLLOUT)
            woken(way.__name__, by, wait, lambda: client.shutdown(socket.SHUT_WR))
            print(outcome(lambda: client.send(b"x")))
        for what in ("send", "sendall", "sendfile"):
            client, server = pair()
            file = os.memfd_create("much")
            size = 30_000_000
            os.ftruncate(file, size)
            much = b"x" * size
            if what == "send":
                wait = lambda: 0 < client.send(much) < size
            elif what == "sendall":
                wait = lambda: outcome(lambda: client.sendall(much))
            else:
                wait = lambda: 0 < os.sendfile(client.fileno(), file, 0, size) < size
            woken(what, by, wait, lambda: client.shutdown(socket.SHUT_WR))
            print(outcome(lambda: client.send(b"x")))
            os.close(file)
        client, server = pair()
        full(client)
        woken("blocked", by, lambda: outcome(lambda: client.send(b"x")), lambda: client.shutdown(socket.SHUT_WR))


globals()[sys.argv[1]]()
