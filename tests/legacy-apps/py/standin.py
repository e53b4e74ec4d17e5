"""A process that stands in for other hosts, as zstackd does, and programs of another user that talk to these hosts.

In a network namespace of its own: packets to 10.9.0.0/16 leave through a tun. A SYN is held there for a moment, and written back; the rest
is turned round in the kernel (clsact). What comes in from the tun is local, whatever its address.

    outbound, inbound  a program connects to another host, or accepts from one: bytes both ways, and a clean end
    slow               the other host reads nothing for a while
    reset              the other host resets the connection, with bytes on the way
    killed             the one that stands in is killed, with bytes on the way in both directions
    sending            the same while the program waits for room
    receiving ROUNDS   the same at any moment while the program receives
    unsaid             it does not say of its sockets that they stand in
    alone              nobody serves
    shown              a connection that stays until a line comes

    stand HOW          the one that stands in
    program WHAT       the program
"""
import collections
import fcntl
import hashlib
import json
import os
import random
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
EXCHANGES = 40
PATTERN = bytes(range(256)) * 256


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


class Serving(threading.Thread):
    """Says that somebody serves, by a file with two bytes locked for as long as it is open (F_OFD_SETLK); and tells of connections."""

    def __init__(self, gate):
        super().__init__(daemon=True)
        self.gate, self.listener = gate, socket.socket(socket.AF_UNIX)
        self.listener.bind(f"\0standin-{os.getpid()}")
        self.listener.listen()
        self.name = f"/dev/shm/zstackd-{os.stat('/proc/self/ns/net').st_ino}"
        self.file = open(self.name, "w", buffering=1)
        self.file.write(f"zstackd 1\ncontrol @standin-{os.getpid()}\nserves 10.9.0.0/16\n")
        for byte in 0, 1:
            fcntl.fcntl(self.file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        self.start()

    def run(self):
        while True:
            c = self.listener.accept()[0]
            if c.recv(100) == b"connections\n":
                for packet in self.gate.seen:
                    sport, dport = struct.unpack(">HH", packet[20:24])
                    told = {"local": f"{HERE}:{sport}", "remote": f"{THERE}:{dport}", "state": "established", "cwnd": 14600,
                            "srtt_us": 250, "retransmits": 3, "copied_in": 1, "copied_out": 2, "port": "tap", "more": []}
                    c.sendall(json.dumps(told).encode() + b"\n")
            c.close()


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


def echo_some(c):
    """The exchanges at the beginning of each connection."""
    for _ in range(EXCHANGES):
        c.sendall(c.recv(64, socket.MSG_WAITALL))


def slow(c):
    echo_some(c)
    time.sleep(0.7)
    echo(c)


def reset(c):
    echo_some(c)
    c.sendall(bytes(20_000))
    c.recv(1)
    c.close()


def deaf(c):
    echo_some(c)
    time.sleep(1000)


def source(c):
    echo_some(c)
    while True:
        c.sendall(PATTERN)


def stands_in(how):
    do = {"slow": slow, "reset": reset, "sending": deaf, "receiving": source}.get(how, echo)
    for c in connect() if how == "inbound" else accept():
        threading.Thread(target=do, args=(c,), daemon=True).start()


# --- the program

def exchange(c):
    for i in range(EXCHANGES):
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


def ended(c, count=True):
    """What is left, and how it ends."""
    left = 0
    while True:
        try:
            b = c.recv(4096)
        except OSError as e:
            end = e.strerror
            break
        if not b:
            end = "the end"
            break
        if not count:
            at = left % 256
            assert PATTERN[at:at + len(b)] == b, "others than were sent"
        left += len(b)
    print(f"{left} bytes left, then {end}" if count else end, flush=True)


def refused(c):
    try:
        c.send(b"x")
    except OSError as e:
        print("send:", e.strerror)


def say(what):
    print(what, flush=True)
    sys.stdin.readline()


def is_program(what):
    if what == "inbound":
        listener = socket.socket()
        listener.bind(("", 0))
        listener.listen()
        print(listener.getsockname()[1], flush=True)
        c, peer = listener.accept()
        assert peer == (THERE, 40000)
    else:
        c = socket.create_connection((THERE, PORT))
        assert c.getpeername() == (THERE, PORT)
    exchange(c)
    c.settimeout(20)
    if what == "killed":
        # So much comes back, and lies unread.
        c.sendall(bytes(20_000))
        say("under way")
        # The other one is stopped by now.
        c.sendall(bytes(10_000))
        say("sent")
        ended(c)
        refused(c)
    elif what == "reset":
        time.sleep(0.1)
        c.sendall(b"x")
        time.sleep(0.1)
        ended(c)
        refused(c)
    elif what == "sending":
        c.settimeout(None)
        print("under way", flush=True)
        try:
            while True:
                c.sendall(PATTERN)
        except OSError as e:
            print("send:", e.strerror)
        ended(c)
    elif what == "receiving":
        c.settimeout(None)
        print("under way", flush=True)
        ended(c, False)
    elif what == "shown":
        say("under way")
    else:
        stream(c)
    c.close()


# --- scenarios

def outbound(what="outbound", said="1"):
    s = stand(what, said)
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
    p.stdin.write("\n")
    p.stdin.flush()
    assert p.stdout.readline() == "sent\n"
    s.kill()
    s.wait()
    print(p.communicate("\n")[0], end="")


def struck(what, pause):
    """Killed while the program is inside a call; how that ends."""
    s, p = stand(what), program(what)
    assert p.stdout.readline() == "under way\n"
    time.sleep(pause)
    s.kill()
    begin = time.monotonic()
    said = p.communicate()[0]
    assert p.returncode == 0 and time.monotonic() - begin < 5
    return said


def receiving(rounds):
    print(sorted(collections.Counter(struck("receiving", random.random() / 20) for _ in range(rounds)).items()))


def shown():
    s, p = stand("outbound"), program("shown")
    print(p.stdout.readline(), end="", flush=True)
    sys.stdin.readline()
    p.communicate("\n")
    s.kill()


def main(what, *more):
    gate = Gate()
    serving = None if what == "alone" else Serving(gate)
    if what == "receiving":
        receiving(int(more[0]))
    elif what == "sending":
        print(struck("sending", 0.5), end="")
    elif what == "unsaid":
        outbound(said="0")
    elif what in ("slow", "reset", "alone"):
        outbound(what)
    else:
        {"outbound": outbound, "inbound": inbound, "killed": killed, "shown": shown}[what]()
    if serving:
        os.unlink(serving.name)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    {"stand": stands_in, "program": is_program}.get(sys.argv[1], lambda *_: main(*sys.argv[1:]))(sys.argv[-1])
