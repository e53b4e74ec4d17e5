"""One end of a connection whose ends send 3 MiB to each other before they read. Arguments: a way, and the port, or 0 to listen.

    block    sendall, then recv
    poll     non-blocking, with an edge-triggered epoll set, then recv
    waitall  recv with MSG_WAITALL, while a thread sends
    lowat    select with SO_RCVLOWAT, while a thread sends
    retry    non-blocking, again and again without asking when, then recv
    held     does not send 3 MiB: one end sends less than the other's SO_RCVLOWAT, then more
"""
import array
import fcntl
import select
import socket
import sys
import termios
import threading
import time

way, port = sys.argv[1], int(sys.argv[2])
LENGTH, WORD = 3 << 20, b"0123456789abcdef"


def content(end):
    return bytes((i * 7 + end) & 255 for i in range(256)) * (LENGTH // 256)


def send_all(c, data):
    c.setblocking(False)
    at = 0
    with select.epoll() as ep:
        ep.register(c, select.EPOLLOUT | select.EPOLLET)
        while at < len(data):
            try:
                at += c.send(data[at:])
            except BlockingIOError:
                ep.poll() if way == "poll" else time.sleep(0.001)
    c.setblocking(True)


def held(c, end):
    if end == 0:
        for _ in range(2):
            c.recv(1)
            c.sendall(bytes(60_000))
        c.recv(1)
        return
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100_000)
    p, there = select.poll(), array.array("i", [0])
    p.register(c, select.POLLIN)
    c.sendall(b"g")
    while there[0] < 60_000:
        fcntl.ioctl(c, termios.FIONREAD, there)
    print("ready", p.poll(0) != [])
    c.sendall(b"g")
    print("ready", p.poll(60_000) != [], "all", len(c.recv(1 << 20, socket.MSG_DONTWAIT)) >= 100_000)
    c.sendall(b"g")


def receive_all(c):
    got = b""
    while len(got) < LENGTH:
        if way == "lowat":
            low = 400_000 if LENGTH - len(got) >= 400_000 else 1
            c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
            select.select([c], [], [])
        part = c.recv(LENGTH - len(got), socket.MSG_WAITALL if way == "waitall" else 0)
        if not part:
            break
        got += part
    return got


if port:
    end, c = 0, socket.create_connection(("127.0.0.1", port))
    for _ in range(80):
        c.sendall(WORD)
        c.recv(len(WORD), socket.MSG_WAITALL)
else:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    end, c = 1, listener.accept()[0]
    for _ in range(80):
        c.sendall(c.recv(len(WORD), socket.MSG_WAITALL))
if way == "held":
    held(c, end)
    sys.exit()
if way in ("waitall", "lowat"):
    sender = threading.Thread(target=c.sendall, args=(content(end),))
    sender.start()
    got = receive_all(c)
    sender.join()
else:
    c.sendall(content(end)) if way == "block" else send_all(c, content(end))
    got = receive_all(c)
print("as sent", got == content(1 - end), flush=True)
