"""A user who is not one of the two whose processes talk to each other. Exits with 1 if anything that
must be refused was allowed. Arguments: seconds of flooding, process ids separated by commas."""
import array
import glob
import os
import random
import socket
import sys
import time

seconds, pids = float(sys.argv[1]), [int(p) for p in sys.argv[2].split(",")]
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
    if os.stat(name).st_uid == os.getuid():
        continue
    must_fail(f"write {name}", lambda: os.close(os.open(name, os.O_WRONLY)))
    must_fail(f"truncate {name}", lambda: os.truncate(name, 0))
    must_fail(f"remove {name}", lambda: os.unlink(name))
    must_fail(f"replace {name}", lambda: os.rename(name, name + ".old"))


def mailboxes():
    """Abstract Unix sockets that look like culvert's."""
    with open("/proc/net/unix", errors="replace") as table:
        for line in table.read().splitlines()[1:]:
            words = line.split()
            if len(words) > 7 and words[7].startswith("@") and "culvert" in words[7]:
                yield "\0" + words[7][1:].rstrip("@")


rng = random.Random(1)
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.setblocking(False)
end = time.monotonic() + seconds
sent = 0
captured = []
while time.monotonic() < end:
    names = list(mailboxes())
    for name in names:
        # What went through before, bit by bit changed, would be the best rubbish; she cannot read it.
        for size in (0, 1, 8, 64, 200, 4000):
            extra = []
            if rng.random() < 0.3:
                fd = os.memfd_create("culvert-channel")
                os.ftruncate(fd, rng.choice((0, 4096, 1 << 20)))
                extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * rng.choice((1, 3))))]
                captured.append(fd)
            data = rng.choice((b"culvert\x01", b"KNOCK", b"")) + rng.randbytes(size)
            for address in (name, name.rstrip("\0")):
                try:
                    sender.sendmsg([data], extra, 0, address)
                    sent += 1
                except OSError:
                    pass
            for fd in captured:
                os.close(fd)
            captured.clear()
    time.sleep(0.001)
print("sent", sent, "to", len(list(mailboxes())))
if allowed:
    print("ALLOWED", *allowed, sep="\n")
    sys.exit(1)
