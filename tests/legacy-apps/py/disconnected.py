"""A connection is disconnected (connect(2), AF_UNSPEC) while bytes lie unread, in either direction: they are gone with it, who sleeps
is woken, and the socket can be connected anew (tcp_disconnect). Both ends are here, and the connection is on rings where it can be."""
import ctypes
import errno
import select
import socket
import termios

from ends import PATIENCE, asked, epolled, exchange, outcome, pair, polled, waiter

libc = ctypes.CDLL(None, use_errno=True)


def disconnect(s):
    """A struct sockaddr of zeros."""
    ctypes.set_errno(0)
    return libc.connect(s.fileno(), ctypes.create_string_buffer(16), 16), ctypes.get_errno()


def unread(s):
    return asked(s, termios.FIONREAD)


def events(s):
    return polled(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP, 0)


def send(s):
    return s.send(b"x", socket.MSG_NOSIGNAL)


for back in (False, True):
    for mine in (b"", b"unread"):
        for theirs in (b"", b"sent"):
            for state in ("", "wr", "rd", "peer", "both"):
                a, b = pair()
                if back:
                    a, b = b, a
                for s in (a, b):
                    s.setblocking(False)
                b.send(mine), a.send(theirs)
                if state in ("wr", "both"):
                    a.shutdown(socket.SHUT_WR)
                if state == "rd":
                    a.shutdown(socket.SHUT_RD)
                if state in ("peer", "both"):
                    b.shutdown(socket.SHUT_WR)
                    # It has come.
                    polled(a, select.POLLRDHUP)
                print(back, mine, theirs, state, disconnect(a), unread(a), events(a))
                print(outcome(lambda: a.recv(3)), outcome(lambda: a.recv(99)), outcome(lambda: send(a)), events(a))
                print(a.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), outcome(a.getpeername))
                print(events(b), unread(b), outcome(lambda: b.recv(99)), outcome(lambda: b.recv(99)), outcome(lambda: send(b)))
                print(disconnect(a))

for lies in (False, True):
    a, b = pair()
    if lies:
        b.send(b"unread"), a.send(b"sent")
    print(disconnect(a))
    listener = socket.create_server(("127.0.0.1", 0))
    a.connect(listener.getsockname())
    c, _ = listener.accept()
    exchange(c, a)
    c.setblocking(False)
    print(outcome(lambda: b.recv(9)), outcome(lambda: b.recv(9)), outcome(lambda: c.recv(9)))
    a.shutdown(socket.SHUT_WR)
    print(outcome(lambda: a.recv(9, socket.MSG_DONTWAIT)), outcome(lambda: send(c)), outcome(lambda: a.recv(9)))


def full(s):
    while True:
        try:
            s.send(b"x" * 65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


for wait in (
    lambda s: outcome(lambda: s.recv(9)),
    lambda s: (full(s), outcome(lambda: send(s)))[1],
    lambda s: polled(s, select.POLLIN),
    lambda s: epolled(s, select.EPOLLIN),
):
    a, b = pair()
    told, over = waiter(lambda: wait(a))
    early = over.wait(0.3)
    print(disconnect(a), early, over.wait(PATIENCE / 2), told)

# The first call behind one that was told EINPROGRESS succeeds, and disconnects nothing.
listener = socket.create_server(("127.0.0.1", 0))
a = socket.socket()
a.setblocking(False)
print(errno.errorcode[a.connect_ex(listener.getsockname())])
b, _ = listener.accept()
a.setblocking(True)
exchange(a, b, 400)
again = a.connect_ex(listener.getsockname())
a.sendall(b"ping"), b.sendall(b"pong")
print(again, b.recv(4), a.recv(4), errno.errorcode[a.connect_ex(listener.getsockname())])

# What a set within a set has told of is gone with the connection.
a, b = pair()
inner, outer = select.epoll(), select.epoll()
inner.register(a, select.EPOLLIN)
b.send(b"unread")
print([e for _, e in inner.poll(PATIENCE)])
outer.register(inner, select.EPOLLIN)
print(len(outer.poll(PATIENCE)))
disconnect(a)
listener = socket.create_server(("127.0.0.1", 0))
a.connect(listener.getsockname())
print(inner.poll(0), outer.poll(0))
