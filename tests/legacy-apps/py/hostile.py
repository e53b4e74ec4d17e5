"""The proved other end of a connection of a victim's, without culvert and not meaning well. Arguments: what it knows of the
shared memory (JSON), a role, a way, the port of the victim, or 0 to listen.

    connector bits     sets all ready bits of the victim's pollers, and clears what they arm, for as long as it lives
    connector contradict  says one thing after the other that cannot be, each on a connection of its own
    connector journal  has news 200 times, notes in its journal that it opens connections in the far future, and has news again
    connector retain   reads nothing of what it is sent on 300 connections, nor closes them, and says how many bytes that are
    connector hoard    says that its connections are closed, and keeps their memory, up to so many megabytes in all (another
                       argument), or until it gets no more
    connector punch    tries to give up parts of the memory, once it is in use
    connector unsealed gives up all of the memory again and again, and never seals it
    connector bells    sleeps on 63 doorbells at a time, whose filters take as long as they can
    connector narrow   says, of both ends, that hardly a byte may lie on the ring, when more does
    connector reset    is not hostile at all: resets its connection
    connector charge   says that it has filled its ring, of which it has written nothing, and when that was read, how many bytes
                       of memory the channel's file has got by that
    acceptor hold      answers a welcome with memory whose lock it holds nearly all the time
    acceptor twin, connector twin
                       has a connection with the addresses of a victim's, whose own lives in another network namespace (more
                       arguments: the connector's port, and the cookie of the victim's socket), and says what it hears
    acceptor WAY       answers a welcome with what is no channel, or knocks a thousand times
"""
import array
import atexit
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import sys
import time

known, role, way, port = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
MAGIC = b"culvmail"
KNOCK, WELCOME, CHANNEL = 1, 2, 3
SO_COOKIE = 57
MASK = (1 << 64) - 1


def mailbox():
    name = int.from_bytes(os.urandom(8), "little") | 1
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(address(name))
    s.setblocking(False)
    return s, name


def address(name):
    return b"\0culvert-%016x" % name


def message(kind, nonce, a=0, b=0, ring=0):
    return struct.pack("<8sIIQQQQI12x", MAGIC, known["version"], kind, me, nonce, a, b, ring)


def cookie(s):
    return struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


def mix(x):
    x ^= x >> 31
    x = x * 0x7FB5D329728EA185 & MASK
    x ^= x >> 27
    x = x * 0x81DADEF4BC2DD44D & MASK
    return x ^ (x >> 33)


def registry(uid=None):
    namespace = os.stat("/proc/self/ns/net").st_ino
    return f"/dev/shm/culvert-{os.getuid() if uid is None else uid}-{namespace}"


def place(sport, dport):
    h = 0x6375_6C76_6572_7431
    mapped = bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1])
    for x in struct.unpack("<4Q", mapped + mapped) + ((sport << 48 | dport << 32),):
        h = mix(h ^ x)
    return mapped, h % 4096 * 256


def publish(sport, dport, c):
    mapped, at = place(sport, dport)
    e = mapped + mapped + struct.pack("<HHIQQI", sport, dport, 0, c, me, known["version"])
    h = 0x72656769
    for w in struct.unpack("<7Q", e[:56]):
        h = mix(h ^ w)
    e += struct.pack("<I", mix(h ^ struct.unpack("<I", e[56:60])[0]) & 0xFFFFFFFF)
    fd = os.open(registry(), os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, e, at)
    os.close(fd)


def published(sport, dport, c):
    """The mailbox that the connector named."""
    _, at = place(sport, dport)
    try:
        # In the tests whoever connects to another user is root.
        fd = os.open(registry(0 if way in ("hold", "twin") else None), os.O_RDONLY)
    except FileNotFoundError:
        return None
    bucket = os.pread(fd, 256, at)
    os.close(fd)
    for i in range(len(bucket) // 64):
        found, name = struct.unpack_from("<QQ", bucket, 64 * i + 40)
        if found == c:
            return name
    return None


def received(s, ancillary=0):
    """A message, if there is one; others of the machine may write here, too."""
    try:
        got = s.recvmsg(65, ancillary)
    except BlockingIOError:
        return None
    return got if len(got[0]) == 64 and got[0].startswith(MAGIC) else None


post, me = mailbox()


def exchange(c, i):
    c.sendall(b"%8d" % i)
    try:
        return c.recv(8, socket.MSG_WAITALL)
    except TimeoutError:
        return b""


def connector():
    if way == "reset":
        c = socket.create_connection(("127.0.0.1", port))
        for i in range(20):
            exchange(c, i)
        c.sendall(b"hostile!")
        # In a hurry: the victim must not see an end of its own.
        c.recv(8, socket.MSG_WAITALL)
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.close()
        return
    if way == "contradict":
        for claim in list(CLAIMS) * int(sys.argv[5]):
            c, slot, sent = seated()
            contradict(c, slot, sent, claim)
        return
    if way == "retain":
        return retain()
    if way == "hoard":
        return hoard(int(sys.argv[5]) << 20)
    c, taken, sent = seated()
    if way == "punch":
        return punch(c, taken)
    if way == "charge":
        return charge(c, taken, sent)
    if way == "bells":
        return bells(c, taken)
    if way == "narrow":
        return narrow(c, taken)
    if way == "journal":
        return journal(c, taken, sent)
    c.sendall(b"hostile!")
    print("at work", flush=True)
    pollers = range(64)
    ready, armed = [queue(p) + 8 for p in pollers], [queue(p) for p in pollers]
    until = time.monotonic() + 60
    while time.monotonic() < until and os.getppid() != 1:
        for _ in range(100):
            for at in ready:
                memory[at : at + 8] = b"\xff" * 8
            for at in armed:
                memory[at : at + 4] = bytes(4)


def twin():
    sport, its = int(sys.argv[5]), int(sys.argv[6])
    listener = socket.create_server(("127.0.0.1", port))
    c = socket.socket()
    c.bind(("127.0.0.1", sport))
    c.connect(("127.0.0.1", port))
    s, _ = listener.accept()
    print("at work", flush=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and os.getppid() != 1:
        if role == "connector":
            publish(sport, port, cookie(c))
        elif name := published(sport, port, its):
            post.sendto(message(KNOCK, 7, its, cookie(s)), address(name))
        if got := received(post):
            print("heard", ["", "a knock", "a welcome"][struct.unpack_from("<I", got[0], 12)[0]], flush=True)
        time.sleep(0.001)


def seated():
    """A connection with the victim, in a slot of a channel that both have; which slot, and how many bytes were sent on it."""
    global memory, memfd, ring
    c = socket.create_connection(("127.0.0.1", port))
    c.settimeout(0.2)
    mine = cookie(c)
    answer, name = mailbox()
    taken, i, last = None, 0, 10_000
    while True:
        if i % 50 == 0:
            # Again and again: a process of root's takes away a registry that nobody has locked.
            publish(c.getsockname()[1], port, mine)
        i += 1
        # Once it is attached its answers come by the ring, where nobody reads.
        exchange(c, i)
        got = received(post)
        if got and struct.unpack_from("<I", got[0], 12)[0] == KNOCK:
            frm, nonce = struct.unpack_from("<QQ", got[0], 16)
            post.sendto(message(WELCOME, nonce, name, 77), address(frm))
        got = received(answer, socket.CMSG_SPACE(4))
        if got and got[1]:
            memfd = struct.unpack("=i", got[1][-1][2][:4])[0]
            ring = struct.unpack_from("<I", got[0], 48)[0]
            memories.append(memfd)
            memory = mmap.mmap(memfd, known["fixed"])
            if way == "unsealed":
                # It comes again: who has not sealed it may not have got it.
                if len(memories) == 1:
                    punch_for_ever()
                    last = i + 1000
            elif fcntl.fcntl(memfd, F_GET_SEALS) & F_SEAL_SEAL == 0:
                # Another user's: it is not used before.
                fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        if memory and taken is None:
            for o in range(64):
                at = known["offers"] + 64 * o
                slot = struct.unpack_from("<I", memory, at + 16)[0]
                if slot and struct.unpack_from("<Q", memory, at)[0] == mine:
                    struct.pack_into("<I", memory, at + 16, 0)
                    taken = slot - 1
                    struct.pack_into("<I", memory, known["headers"][taken] + known["rx"], 1)
                    c.settimeout(0.01)
                    break
        if taken is not None and load(taken, "side", "up", ACCEPTOR):
            return c, taken, 8 * i
        if i > last and way in ("hoard", "retain"):
            c.close()
            return None
        if i > last:
            print("not offered a slot", flush=True)
            sys.exit(0 if way == "unsealed" else 2)


memory = memfd = ring = None
memories = []
F_ADD_SEALS, F_GET_SEALS, F_SEAL_SEAL, F_SEAL_FUTURE_WRITE = 1033, 1034, 1, 16
PUNCH = 3
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def in_background(step):
    """Does a thing for as long as this process lives."""
    child = os.fork()
    if child == 0:
        while os.getppid() != 1:
            step()
        os._exit(0)
    atexit.register(os.kill, child, 9)


def allocate_and_punch(fd):
    n = os.fstat(fd).st_size
    libc.fallocate(fd, 0, 0, n)
    libc.fallocate(fd, PUNCH, 0, n)


def punch_for_ever():
    print("has the memory", flush=True)
    in_background(lambda: allocate_and_punch(memfd))


def punch(c, slot):
    """What the calls say that would give up a part of the memory, and what there is afterwards."""
    store(slot, "side", "sndbuf", 77)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for call in (
        lambda: libc.fallocate(memfd, PUNCH, 0, known["fixed"]),
        lambda: libc.madvise(at, known["fixed"] & ~4095, 9),
        lambda: os.ftruncate(memfd, 0),
        lambda: mmap.mmap(memfd, known["fixed"]),
        lambda: os.pwrite(memfd, b"x", 0),
    ):
        ctypes.set_errno(0)
        try:
            print(errno.errorcode.get(call() and ctypes.get_errno(), "allowed"), end=" ")
        except OSError as e:
            print(errno.errorcode[e.errno], end=" ")
    print(load(slot, "side", "sndbuf") & 0xFFFFFFFF, flush=True)
CONNECTOR, ACCEPTOR = 0, 1


def queue(p):
    """Where the victim's poller `p` has its words."""
    return known["queues"] + 64 * 64 + 64 * p


def word(slot, line, field, side=CONNECTOR):
    """Where a word of a slot lies. The lines of a kind are 64 bytes each: the connector's, then the acceptor's."""
    return known["headers"][slot] + known["lines"][line] + 64 * side + known["fields"][field]


def load(slot, line, field, side=CONNECTOR):
    return struct.unpack_from("<Q", memory, word(slot, line, field, side))[0]


def store(slot, line, field, value, side=CONNECTOR):
    struct.pack_into("<Q", memory, word(slot, line, field, side), value & MASK)


def tell(slot):
    """Sets the victim's ready bits for the slot, and rings all its doorbells."""
    for p in range(64):
        for at in (queue(p) + 8, queue(p) + 32):
            struct.pack_into("<Q", memory, at, struct.unpack_from("<Q", memory, at)[0] | 1 << slot)
        bell, key = struct.unpack_from("<QQ", memory, queue(p) + 16)
        if bell:
            try:
                post.sendto(struct.pack("<Q", key), address(bell))
            except OSError:
                pass


# What a peer can say that cannot be: words, and what is stored there. A number beside a name is added to that word's value.
CLAIMS = {
    "left far behind": [("side", "rewind", 1 << 63, CONNECTOR)],
    "left ahead of what was sent": [("side", "rewind", ("producer", "tail", 100, ACCEPTOR), CONNECTOR)],
    "published too much": [("producer", "tail", 1 << 40, CONNECTOR)],
    "ended behind what it published": [("producer", "tail", 8, CONNECTOR), ("side", "down", 100, CONNECTOR)],
    "ended before what was read": [("side", "down", MASK, CONNECTOR)],
    "read what was not sent": [("consumer", "head", 1 << 50, ACCEPTOR)],
    "moved the victim's own arbiter": [("side", "rewind", 1 << 62, ACCEPTOR)],
}


def contradict(c, slot, sent, claim):
    # Its direction goes up behind the next message.
    store(slot, "side", "up", sent + 8 + 1)
    c.sendall(b"hostile!")
    until = time.monotonic() + 60
    # The answer to it: the victim has read it, and is on its ring.
    tail = load(slot, "producer", "tail", ACCEPTOR)
    while load(slot, "producer", "tail", ACCEPTOR) == tail and time.monotonic() < until:
        time.sleep(0.001)
    for line, field, value, side in CLAIMS[claim]:
        if isinstance(value, tuple):
            value = load(slot, *value[:2], value[3]) + value[2]
        store(slot, line, field, value, side)
    tell(slot)
    # Until the victim has ended it.
    c.settimeout(60)
    try:
        while c.recv(4096):
            pass
        print(f"{claim}: ended", flush=True)
    except OSError as e:
        print(f"{claim}: {type(e).__name__}", flush=True)


def charge(c, slot, sent):
    def pages():
        return os.fstat(memfd).st_blocks * 512

    full = ring - 64
    before = pages()
    store(slot, "producer", "tail", full)
    # The ring begins behind the next message.
    store(slot, "side", "up", sent + 8 + 1)
    c.sendall(b"hostile!")
    print("at work", flush=True)
    until = time.monotonic() + 60
    while load(slot, "consumer", "head") != full and time.monotonic() < until:
        time.sleep(0.01)
    print("read", load(slot, "consumer", "head") == full, "bytes", pages() - before, flush=True)


def retain():
    kept = []
    for _ in range(300):
        # A connection stays on the kernel whose channel was not made in its time; another one gets it.
        tries = (seated() for _ in range(10))
        got = next((seat for seat in tries if seat), None)
        if not got:
            print("not offered a slot, behind", len(kept), flush=True)
            sys.exit(2)
        c, slot, _ = got
        c.sendall(b"hostile!")
        # The victim sends what it can, and closes: it says that it is gone.
        until = time.monotonic() + 60
        while not load(slot, "side", "gone", ACCEPTOR) & 0xFFFFFFFF and time.monotonic() < until:
            time.sleep(0.001)
        kept.append(c)

    def is_reset(c, wait):
        p = select.poll()
        p.register(c, 0)
        return bool(p.poll(wait))

    # The last one's RST may be about to come; the first one is long over by then.
    ends = [is_reset(c, 30_000 if c is kept[-1] else 0) for c in reversed(kept)][::-1]
    print("megabytes", sum(os.fstat(fd).st_blocks for fd in memories) * 512 >> 20, "first", ends[0], "last", ends[-1], flush=True)


def hoard(most):
    """Says of each connection that it is closed, so that its channel is given up, and keeps the memory."""
    global memory, post, me

    def kept():
        return sum(os.fstat(fd).st_blocks for fd in memories) * 512

    refused = False
    while not refused and kept() < most:
        memory = None
        # As one process after the other.
        post, me = mailbox()
        if got := seated():
            c, slot, _ = got
            c.sendall(b"hostile!")
            until = time.monotonic() + 60
            while not load(slot, "side", "gone", ACCEPTOR) & 0xFFFFFFFF and time.monotonic() < until:
                time.sleep(0.001)
            struct.pack_into("<I", memory, word(slot, "side", "gone"), 1)
            c.close()
        refused = not got
    print("megabytes", kept() >> 20, "of", len(memories), "refused" if refused else "", flush=True)


def bells(c, slot):
    # BPF_LD | BPF_ABS of a random number, again and again; then the whole message is taken.
    costly = struct.pack("=HBBI", 0x20, 0, 0, 0xFFFFF038) * 4000 + struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF)
    program = ctypes.create_string_buffer(costly, len(costly))
    for p in range(63):
        s, name = mailbox()
        s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("=HxxxxxxQ", 4001, ctypes.addressof(program)))
        keep.append(s)
        struct.pack_into("<QQ", memory, known["queues"] + 64 * p + 16, name, 1)
    store(slot, "side", "pollers", (1 << 63) - 1)
    c.settimeout(30)
    for i in range(400):
        for p in range(63):
            struct.pack_into("<I", memory, known["queues"] + 64 * p, 1)
        tail = load(slot, "producer", "tail", ACCEPTOR)
        c.sendall(b"%8d" % i)
        until = time.monotonic() + 30
        while load(slot, "producer", "tail", ACCEPTOR) == tail and time.monotonic() < until:
            if load(slot, "side", "down", ACCEPTOR):
                # It has gone to the kernel, and so do its answers, those that were not read on the ring first.
                answers = b""
                while not answers.endswith(b"%8d" % i):
                    answers += c.recv(4096)
                print("on the kernel", flush=True)
                return
    print("rung for ever", flush=True)


def narrow(c, slot):
    for side in (CONNECTOR, ACCEPTOR):
        for buffer in ("sndbuf", "rcvbuf"):
            struct.pack_into("<I", memory, word(slot, "side", buffer, side), 1)
    c.sendall(b"hostile!")
    print("narrow", flush=True)
    c.settimeout(60)
    try:
        while c.recv(1 << 16):
            pass
    except OSError:
        pass


def journal(c, slot, sent):
    store(slot, "side", "up", sent + 8 + 1)
    c.sendall(b"hostile!")
    until = time.monotonic() + 60
    for n in range(1, 401):
        store(slot, "producer", "tail", n)
        tell(slot)
        while load(slot, "consumer", "head") != n and time.monotonic() < until:
            pass
        if n == 200:
            # Of its own side: how many, the latest; then note by note its number, when it began and ended, and what it is.
            at, opens = known["journal"], 1 << 30
            for i in range(512):
                struct.pack_into("<QQQQ", memory, at + 64 + 32 * i, i + 1, 1, MASK - 2, i << 48 | 7 << 32 | opens)
            struct.pack_into("<QQ", memory, at, 512, MASK - 1)
    print("told", n, flush=True)
    c.settimeout(60)
    c.recv(1 << 16)


def bad_channel():
    """A descriptor that is no channel's memory, and the size that is claimed."""
    if way == "pipe":
        r, w = os.pipe()
        os.set_blocking(w, False)
        try:
            while True:
                os.write(w, bytes(65536))
        except BlockingIOError:
            os.set_blocking(w, True)
        return w
    if way == "reader":
        r, w = os.pipe()
        os.close(r)
        return w
    if way == "file":
        return os.open("/proc/self/exe", os.O_RDONLY)
    if way == "eventfd":
        return os.eventfd(0xFFFFFFFFFFFFFFFE & 0x7FFFFFFF, 0)
    if way == "lingering":
        l = socket.create_server(("127.0.0.1", 0))
        s = socket.create_connection(l.getsockname())
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        s.setblocking(False)
        try:
            while True:
                s.send(bytes(65536))
        except BlockingIOError:
            pass
        keep.append(l)
        return s.detach()
    m = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    small = way == "hold"
    os.ftruncate(m, known["small length"] if small else known["length"] - (4096 if way == "short" else 0))
    if way != "unsealed":
        fcntl.fcntl(m, F_ADD_SEALS, 2 | 4)
    if way == "hold":
        for _ in range(4):
            in_background(lambda: allocate_and_punch(m))
    return m


keep = []


def acceptor():
    global post, me
    l = socket.create_server(("127.0.0.1", port))
    print(l.getsockname()[1], flush=True)
    c, peer = l.accept()
    there = None
    i = done = 0
    while True:
        request = c.recv(8, socket.MSG_WAITALL)
        if len(request) < 8:
            break
        c.sendall(request)
        i += 1
        # Of a socket that is ours alone the other end's cookie is the kernel's to tell; the victim says it to us.
        theirs = int(request) if i == 1 else theirs
        there = there or published(peer[1], port or l.getsockname()[1], theirs)
        # On a busy machine the children that hold the lock are not always at it.
        if there and (way == "flood" or i % 40 == 0) and done < (24 if way == "hold" else 8):
            for n in range(1500 if way == "flood" else 1):
                try:
                    post.sendto(message(KNOCK, n, theirs, cookie(c)), address(there))
                except OSError:
                    pass
        got = received(post)
        if got and struct.unpack_from("<I", got[0], 12)[0] == WELCOME:
            _, nonce, answer, key = struct.unpack_from("<QQQQ", got[0], 16)
            fd = bad_channel()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                claimed = known["small" if way == "hold" else "ring"]
                post.sendmsg([message(CHANNEL, key, 5, ring=claimed)], rights, 0, address(answer))
            except OSError:
                # It has welcomed again meanwhile, to another box.
                pass
            if way == "lingering":
                # In a child, which may be killed: closed here, it would wait.
                if os.fork() == 0:
                    os._exit(0)
            else:
                os.close(fd)
            done += 1
            if way == "hold":
                # As another process would.
                post, me = mailbox()
    print("welcomed", done, flush=True)


if way == "twin":
    twin()
connector() if role == "connector" else acceptor()
sys.stdout.flush()
if way not in ("hold", "unsealed"):
    os._exit(0)
