"""A user who speaks culvert's protocol perfectly and is none of those whose processes talk to each other. Exits with 1 if
anything that must be refused was allowed, or if anybody answered. Arguments: version of the messages, seconds of flooding,
process ids separated by commas."""
import array
import glob
import os
import re
import socket
import struct
import subprocess
import sys
import time

version, seconds, pids = int(sys.argv[1]), float(sys.argv[2]), [int(p) for p in sys.argv[3].split(",")]
allowed = []


def must_fail(what, attempt):
    try:
        attempt()
    except OSError:
        return
    allowed.append(what)


for pid in pids:
    must_fail(f"list descriptors of {pid}", lambda: os.listdir(f"/proc/{pid}/fd"))
    must_fail(f"read memory of {pid}", lambda: open(f"/proc/{pid}/mem", "rb").close())
    must_fail(f"list mappings of {pid}", lambda: os.listdir(f"/proc/{pid}/map_files"))
    must_fail(f"signal {pid}", lambda: os.kill(pid, 0))
    for n in range(3, 64):
        must_fail(f"open descriptor {n} of {pid}", lambda: os.close(os.open(f"/proc/{pid}/fd/{n}", os.O_RDONLY)))

for name in glob.glob("/dev/shm/culvert*"):
    try:
        if os.stat(name).st_uid == os.getuid():
            continue
    except FileNotFoundError:
        continue
    must_fail(f"write {name}", lambda: os.close(os.open(name, os.O_WRONLY)))
    must_fail(f"truncate {name}", lambda: os.truncate(name, 0))
    must_fail(f"remove {name}", lambda: os.unlink(name))
    must_fail(f"replace {name}", lambda: os.rename(name, name + ".old"))

MAGIC = b"culvmail"
VERSION_NO, KNOCK, WELCOME, CHANNEL, DOORBELL = range(5)
me = int.from_bytes(os.urandom(8), "little") | 1
post = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
post.bind(b"\0culvert-%016x" % me)
post.setblocking(False)


def message(kind, nonce, a=0, b=0, ring=0, version=version):
    return struct.pack("<8sIIQQQQI12x", MAGIC, version, kind, me, nonce, a, b, ring)


def names():
    """Mailboxes, answer boxes and doorbells: of all the same make."""
    with open("/proc/net/unix", errors="replace") as table:
        for line in table.read().splitlines()[1:]:
            words = line.split()
            if len(words) > 7 and words[7].startswith("@culvert-"):
                name = words[7].rstrip("@").replace("@", "\0", 1).encode()
                if name != b"\0culvert-%016x" % me:
                    yield name


def cookies():
    """Of every TCP socket, connected or not: the kernel tells anybody."""
    out = subprocess.run(["ss", "-tneH"], capture_output=True, text=True).stdout
    return [int(c, 16) for c in re.findall(r"sk:([0-9a-f]+)", out)]


def descriptors():
    """What would hold up whoever writes to it, or closes it, or maps it."""
    full, _ = socket.socketpair()
    full.setblocking(False)
    try:
        while True:
            full.send(bytes(65536))
    except BlockingIOError:
        full.setblocking(True)
    listener = socket.create_server(("127.0.0.1", 0))
    lingering = socket.create_connection(listener.getsockname())
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    lingering.setblocking(False)
    try:
        while True:
            lingering.send(bytes(65536))
    except BlockingIOError:
        pass
    memory = os.memfd_create("mallory", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 1 << 20)
    keep.append(listener)
    return [full.detach(), lingering.detach(), memory, os.open("/dev/null", os.O_RDWR)]


def answered():
    try:
        data, extra, _, address = post.recvmsg(64, socket.CMSG_SPACE(4 * 65))
    except BlockingIOError:
        return
    allowed.append(f"an answer from {address}: {data}, {extra}")


def send_all():
    """One round, in a process of its own: when it has ended, its descriptors are in those messages alone that were taken."""
    known = cookies()
    pairs = [(a, b) for a in known for b in known if a != b][:200] + [(1, 2)]
    fds = descriptors()
    letters = [message(KNOCK, n, a, b) for n, (a, b) in enumerate(pairs)]
    letters += [message(kind, nonce, 1, 2) for kind in (WELCOME, VERSION_NO, DOORBELL) for nonce in (0, 1)]
    letters += [message(CHANNEL, 1, 7, ring=4096), message(KNOCK, 1, 1, 2, version=version + 1)]
    letters += [os.urandom(8), b"", bytes(64)]
    sent = 0
    for name in set(names()):
        for letter in letters:
            for rights in [[], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fds[sent % len(fds)]]))]]:
                try:
                    post.sendmsg([letter], rights, 0, name)
                    sent += 1
                except OSError:
                    pass
    return sent


keep = []
rounds = 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        os._exit(0 if send_all() > 0 else 3)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) not in (0, 3):
        print("a round failed", status)
        sys.exit(2)
    rounds += status == 0
    answered()
print("rounds", rounds)
answered()
if rounds == 0:
    allowed.append("nothing: there was nobody to write to")
if allowed:
    print("ALLOWED", *allowed, sep="\n")
    sys.exit(1)
