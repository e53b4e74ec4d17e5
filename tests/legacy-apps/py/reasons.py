"""Connections that stay on the kernel, or go back there, each for another reason. Argument: the reason's key.

Both ends are in this process, if it does not say otherwise. Says "ready", and waits for the end of its standard input.
"""
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time

import networks

libc = ctypes.CDLL(None, use_errno=True)


def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def talk(a, b, times):
    for _ in range(times):
        for x, y in ((a, b), (b, a)):
            x.sendall(b"x")
            assert y.recv(1) == b"x"


def warm(a, b):
    """Exchanges that bring it onto shared memory."""
    talk(a, b, 300)


def young():
    a, b = pair()
    talk(a, b, 1)
    return a, b


def peer_without_culvert():
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    code = (
        "import socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\n"
        "while d := c.recv(1): c.sendall(d)\n"
    )
    p = subprocess.Popen([sys.executable, "-c", code], env=plain, stdout=subprocess.PIPE)
    a = socket.create_connection(("127.0.0.1", int(p.stdout.readline())))
    for _ in range(100):
        a.sendall(b"x")
        a.recv(1)
    return a, p


def configured():
    a, b = pair()
    talk(a, b, 100)
    return a, b


no_registry = not_loaded = no_memory = unproved = no_descriptor = configured


def translated():
    """Port 8000 leads to 8080. IPv4 comes to a socket of IPv6, too."""
    with socket.create_server(("", 8080), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        a = socket.create_connection((sys.argv[2], 8000))
        b, _ = listener.accept()
    talk(a, b, 100)
    return a, b


def user_ids():
    os.seteuid(65533)
    return configured()


def shared_by_processes():
    a, b = pair()
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    talk(a, b, 100)
    return a, b


def served_by_a_child(received, kept):
    """A connection whose socket is sent to a child, which receives it by `received`. `kept`: not closed here."""
    a, b = pair()
    x, y = socket.socketpair()
    if os.fork() == 0:
        a.close()
        b.close()
        other = received(x, y)
        while data := other.recv(1):
            other.sendall(data)
        os._exit(0)
    socket.send_fds(x, [b"x"], [b.fileno()])
    if not kept:
        b.close()
    for _ in range(100):
        a.sendall(b"x")
        assert a.recv(1) == b"x"
    return a, b


def received():
    return served_by_a_child(lambda x, y: socket.socket(fileno=socket.recv_fds(y, 1, 1)[1][0]), True)


def inherited():
    """It was passed on by one who could not know who else holds it."""

    def twice(x, y):
        first = socket.recv_fds(y, 1, 1)[1]
        socket.send_fds(x, [b"x"], first)
        os.close(first[0])
        return socket.socket(fileno=socket.recv_fds(y, 1, 1)[1][0])

    return served_by_a_child(twice, False)


def fdopen():
    a, b = pair()
    warm(a, b)
    libc.fdopen.restype = ctypes.c_void_p
    assert libc.fdopen(b.fileno(), b"r+")
    return a, b


def passed_on():
    a, b = pair()
    x, y = socket.socketpair()
    talk(a, b, 3)
    socket.send_fds(x, [b"x"], [b.fileno()])
    return a, b, x, y


def exec_():
    a, b = pair()
    b.set_inheritable(True)
    warm(a, b)
    return a, b, subprocess.Popen(["cat"], close_fds=False)


def socket_option():
    if "device" in sys.argv:
        # What is accepted is bound to it, too.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            a = socket.create_connection(listener.getsockname())
            b, _ = listener.accept()
    else:
        a, b = pair()
        b.setsockopt(socket.SOL_SOCKET, 47, 1 << 20)  # SO_MAX_PACING_RATE
    talk(a, b, 100)
    return a, b


def out_of_band():
    a, b = pair()
    talk(a, b, 1)
    a.send(b"x", socket.MSG_OOB)
    return a, b


def async_():
    a, b = pair()
    fcntl.fcntl(b, fcntl.F_SETFL, fcntl.fcntl(b, fcntl.F_GETFL) | os.O_ASYNC)
    return a, b


def splice():
    a, b = pair()
    r, w = os.pipe()
    a.sendall(b"x")
    assert os.splice(b.fileno(), w, 1) == 1
    return a, b


def epoll_exclusive():
    """A set that two processes have."""
    a, b = pair()
    s = select.epoll()
    if os.fork() == 0:
        a.close()
        b.close()
        sys.stdin.read()
        os._exit(0)
    s.register(b, select.EPOLLIN)
    return a, b, s


def ktls():
    a, b = pair()
    try:
        b.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
    except OSError:
        pass
    return a, b


def self_connect():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.connect(s.getsockname())
    for _ in range(20):
        s.send(b"x")
        s.recv(1)
    return (s,)


def returned():
    """By the other end, which has a reason."""
    a, b = pair()
    warm(a, b)
    b.setsockopt(socket.SOL_SOCKET, 47, 1 << 20)
    talk(a, b, 10)
    return a, b


def pending():
    """The acceptor has done nothing yet."""
    a, b = pair()
    for _ in range(40):
        a.send(b"x")
    return a, b


def peer_gone():
    """It has only sent."""
    a, b = pair()
    for _ in range(300):
        b.sendall(b"x")
        assert a.recv(1) == b"x"
    b.close()
    assert a.recv(1) == b""
    return (a,)


def mix(h):
    """rendezvous::tuple::mix."""
    mask = (1 << 64) - 1
    h ^= h >> 31
    h = h * 0x7FB5_D329_728E_A185 & mask
    h ^= h >> 27
    h = h * 0x81DA_DEF4_BC2D_D44D & mask
    return h ^ (h >> 33)


def peer_version():
    """What the connector has published is overwritten, as by one of another version."""
    a, b = pair()
    for _ in range(7):
        a.sendall(b"x")
        b.recv(1)
    directory = os.environ["CULVERT_DIR"]
    (name,) = os.listdir(directory)
    port = struct.pack("=H", a.getsockname()[1])
    with open(f"{directory}/{name}", "r+b") as table:
        whole = table.read()
        at = next(i for i in range(0, len(whole), 64) if port in (whole[i + 32 : i + 34], whole[i + 32 : i + 34][::-1]))
        entry = bytearray(whole[at : at + 64])
        entry[56:60] = struct.pack("=I", 1)
        h = 0x7265_6769
        for word in struct.unpack("=7Q", entry[:56]):
            h = mix(h ^ word)
        entry[60:] = struct.pack("=I", mix(h ^ 1) & 0xFFFF_FFFF)
        table.seek(at)
        table.write(entry)
    for _ in range(10):
        b.sendall(b"x")
    return a, b


def shut_down():
    a, b = pair()
    b.shutdown(socket.SHUT_WR)
    return a, b


def namespace():
    a, b = pair()
    libc.dlmopen.restype = ctypes.c_void_p
    assert libc.dlmopen(-1, b"libm.so.6", 2)
    talk(a, b, 100)
    return a, b


def descriptor_tables():
    a, b = pair()
    warm(a, b)
    thread = threading.Thread(target=lambda: (libc.unshare(0x400), sys.stdin.read()))
    thread.start()
    time.sleep(0.2)
    return a, b


def other_network():
    other, how = networks.Network(), sys.argv[2]
    if how == "made":
        # Both ends; the one that is accepted is its listener's.
        with other:
            listener, a = socket.create_server(("127.0.0.1", 0)), socket.socket()
        a.connect(listener.getsockname())
        b, _ = listener.accept()
    elif how == "received":
        # Made by another process, which keeps nothing.
        mine, its = socket.socketpair()
        child = os.fork()
        if child == 0:
            with other:
                ends = pair()
            for end in ends:
                socket.send_fds(its, [b"x"], [end.fileno()])
                end.close()
            os._exit(0)
        os.waitpid(child, 0)
        a, b = (socket.socket(fileno=socket.recv_fds(mine, 1, 1)[1][0]) for _ in range(2))
    else:
        # A child, which has its parent's home.
        warm(*pair())
        child = os.fork()
        if child:
            print("ready", flush=True)
            os.waitpid(child, 0)
            os._exit(0)
        other.__enter__()
        a, b = pair()
    talk(a, b, 100)
    return a, b


name = sys.argv[1].replace("-", "_")
kept = globals().get(name + "_", globals().get(name))()
print("ready", flush=True)
sys.stdin.read()
