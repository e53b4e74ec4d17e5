"""Makes sockets as the lines of standard input say, and answers each with a line.

    connect HOST     to a port of that host, without waiting; says the socket's cookie
    listen HOST      says its cookie, or that it failed
    new              a socket that is not connected; says its cookie
    connected HOST   connects the last socket, without waiting
    disconnected     disconnects it
    timed MS         sets TCP_USER_TIMEOUT of the last socket
    shared           a child has the last socket, too, for a moment
    accept           a connection from this host, by the last socket that listens
    close            the last socket
    fork             a child goes on, and this process ends
    exec             this process begins anew, with the last socket
"""
import ctypes
import os
import socket
import struct
import sys

SO_COOKIE = 57
held = [socket.socket(fileno=int(fd)) for fd in sys.argv[1:]]


def cookie(s):
    return struct.unpack("Q", s.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


def new(host):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.append(s)
    return s


for line in iter(sys.stdin.readline, ""):
    word, *rest = line.split()
    said = "done"
    if word == "connect":
        s = new(rest[0])
        s.setblocking(False)
        try:
            s.connect((rest[0], 9))
        except OSError:
            pass
        said = cookie(s)
    elif word == "listen":
        s = new(rest[0])
        s.bind((rest[0], 0))
        try:
            s.listen()
            said = cookie(s)
        except OSError as e:
            said = os.strerror(e.errno)
    elif word == "new":
        said = cookie(new("0.0.0.0"))
    elif word == "connected":
        held[-1].setblocking(False)
        held[-1].connect_ex((rest[0], 9))
    elif word == "disconnected":
        unspecified = struct.pack("16s", b"")
        assert ctypes.CDLL(None).connect(held[-1].fileno(), unspecified, len(unspecified)) == 0
    elif word == "timed":
        held[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(rest[0]))
    elif word == "shared":
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    elif word == "accept":
        socket.create_connection(("127.0.0.1", held[-1].getsockname()[1]))
        held[-1].accept()
    elif word == "close":
        held.pop().close()
    elif word == "fork":
        if os.fork():
            sys.exit()
    elif word == "exec":
        os.set_inheritable(held[-1].fileno(), True)
        print("done", flush=True)
        os.execv(sys.executable, [sys.executable, "-u", __file__, str(held[-1].fileno())])
    print(said, flush=True)
