"""A process that stands in for other hosts, as zstackd does, and programs of another user that talk to these hosts.

In a network namespace of its own: packets to 10.9.0.0/16 leave through a tun. A SYN is held there for a moment, and written back; the rest
is turned round in the kernel (clsact). What comes in from the tun is local, whatever its address.

    outbound, inbound  a program connects to another host, or accepts from one: bytes both ways, and how they end
    killed             the one that stands in is killed with bytes on the way
    unsaid             it does not say of its sockets that they stand in
    alone              nobody serves
    intents            which of a program's sockets it says to be about to connect, or to listen

    stand HOW          the one that stands in
    program WHAT       the program
"""
import contextlib
import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

HERE, THERE, PORT = "10.1.0.1", "10.9.0.2", 80
USER = 4321
TRANSPARENT = 19
RESETS = struct.pack("ii", 1, 0)
SO_COOKIE = 57


# --- the namespace

def sh(*commands):
    for c in commands:
        subprocess.run(c, shell=True, check=True)


class Gate(threading.Thread):
    """The tun: holds SYNs for a moment."""

    def __init__(self):
        super().__init__(daemon=True)
        self.tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.tun, 0x400454CA, struct.pack("16sH22x", b"cv0", 0x1001))
        sh("ip link set lo up", f"ip addr add {HERE}/32 dev lo", "ip link set cv0 up",
           f"ip route add 10.9.0.0/16 dev cv0 src {HERE}",
           "ip rule add iif cv0 lookup 101", "ip route add local 0.0.0.0/0 dev lo table 101",
           "echo 1 > /proc/sys/net/ipv4/conf/cv0/accept_local", "tc qdisc add dev cv0 clsact",
           "tc filter add dev cv0 egress protocol ip u32 match u8 6 0xff at 9 match u8 0 0x02 at 33"
           " action mirred ingress redirect dev cv0")
        self.seen = []
        self.start()

    def run(self):
        while True:
            packet = os.read(self.tun, 65536)
            if packet[0] >> 4 == 4 and packet[9] == 6:
                self.seen.append(packet)
                time.sleep(0.01)
                os.write(self.tun, packet)


def registry():
    return os.environ.get("CULVERT_DIR", "/dev/shm")


def serve():
    """Says that somebody serves: a file with two bytes locked for as long as it is open (F_OFD_SETLK)."""
    name = f"{registry()}/zstackd-{os.stat('/proc/self/ns/net').st_ino}"
    f = open(name, "w", buffering=1)
    f.write(f"zstackd 1\ncontrol @none\nserves 10.9.0.0/16\n")
    for byte in 0, 1:
        fcntl.fcntl(f, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return f


def other(*words, user=0, **env):
    return subprocess.Popen([sys.executable, "-u", __file__, *words], env={**os.environ, **env}, user=user, group=user,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stand(how, said="1"):
    p = other("stand", how, CULVERT_PATH="shm", CULVERT_STANDIN=said)
    assert p.stdout.readline() == "ready\n"
    return p


def program(what):
    return other("program", what, user=USER)


# --- the one that stands in

def inner(c):
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
    return c


def accept():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_IP, TRANSPARENT, 1)
    listener.bind((THERE, PORT))
    listener.listen(100)
    print("ready", flush=True)
    while True:
        yield inner(listener.accept()[0])


def connect():
    print("ready", flush=True)
    for line in sys.stdin:
        c = inner(socket.socket())
        c.setsockopt(socket.SOL_IP, TRANSPARENT, 1)
        c.bind((THERE, 40000))
        c.connect((HERE, int(line)))
        yield c


def echo(c):
    while got := c.recv(65536):
        c.sendall(got)
    # A clean end.
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    c.close()


def stands_in(how):
    for c in connect() if how == "inbound" else accept():
        threading.Thread(target=echo, args=(c,), daemon=True).start()


# --- the program

def exchange(c, times=40):
    for i in range(times):
        ask = b"%64d" % i
        c.sendall(ask)
        assert c.recv(64, socket.MSG_WAITALL) == ask


def stream(c, length=3_000_000):
    """Sends noise, and gets it back; half-closes at the end."""
    sent, got = os.urandom(length), hashlib.sha256()
    sender = threading.Thread(target=lambda: (c.sendall(sent), c.shutdown(socket.SHUT_WR)))
    sender.start()
    count = 0
    while b := c.recv(65536):
        got.update(b)
        count += len(b)
    sender.join()
    print(count, "bytes", "as sent" if got.digest() == hashlib.sha256(sent).digest() else "others")


def ended(c):
    """What is left, and how it ends."""
    left = 0
    while True:
        try:
            b = c.recv(4096)
        except OSError as e:
            return print(left, "bytes left, then", e.strerror)
        if not b:
            return print(left, "bytes left, then the end")
        left += len(b)


def is_program(what):
    if what == "inbound":
        listener = socket.socket()
        listener.bind(("", 0))
        listener.listen()
        print(listener.getsockname()[1], flush=True)
        c, peer = listener.accept()
        assert peer[0] == THERE
    else:
        c = socket.create_connection((THERE, PORT))
        assert c.getpeername() == (THERE, PORT)
    exchange(c)
    if what == "killed":
        print("under way", flush=True)
        # What it sends lies unread on the ring, or is on its way back, when the peer is killed.
        c.sendall(bytes(20_000))
        sys.stdin.readline()
        c.settimeout(5)
        ended(c)
        try:
            c.send(b"x")
        except OSError as e:
            print("send:", e.strerror)
        print("flags", sorted(select.select([c], [c], [], 0)[0] != [] and ["readable"] or []))
    else:
        stream(c)
    c.close()


# --- scenarios

def outbound(what="outbound", said="1"):
    s = stand("outbound", said)
    p = program(what)
    print(p.communicate()[0], end="")
    s.kill()


def inbound():
    s, p = stand("inbound"), program("inbound")
    s.stdin.write(p.stdout.readline())
    s.stdin.flush()
    print(p.communicate()[0], end="")
    s.kill()


def killed():
    s, p = stand("outbound"), program("killed")
    assert p.stdout.readline() == "under way\n"
    time.sleep(0.2)
    s.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    s.kill()
    s.wait()
    print(p.communicate("\n")[0], end="")


def main(what):
    gate = Gate()
    served = None if what == "alone" else serve()
    if what == "unsaid":
        outbound(said="0")
    elif what == "alone":
        outbound()
    else:
        {"outbound": outbound, "inbound": inbound, "killed": killed}[what]()
    print(len([p for p in gate.seen if p[33] & 2]), "SYNs")
    os._exit(0)


if __name__ == "__main__":
    {"stand": stands_in, "program": is_program}.get(sys.argv[1], lambda _: main(sys.argv[1]))(sys.argv[-1])
