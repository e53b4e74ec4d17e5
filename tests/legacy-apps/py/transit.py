"""One process, both ends: a receiver that polls while the sender has gone up, and away, behind a full lifeline."""
import array
import fcntl
import select
import socket
import termios

from ahead import connection, stream

SO_MAX_PACING_RATE = 47


def unread(s):
    """As FIONREAD counts it."""
    n = array.array("i", [0])
    fcntl.ioctl(s, termios.FIONREAD, n)
    return n[0]


def once(last, rate=None):
    sender, receiver, sent, got = connection()
    receiver.setblocking(False)
    if rate:
        # What the kernel has accepted comes no faster than this: the connection is the kernel's again.
        sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
    last(sender)
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    while len(got) < sent:
        assert poll.poll(20_000), f"nothing to read after {len(got)} of {sent} bytes"
        got += receiver.recv(100_000)
        while len(got) < sent and unread(receiver) > 0:
            # It says so: this does not refuse.
            got += receiver.recv(100_000)
    sender.close()
    assert poll.poll(20_000) and receiver.recv(1) == b""
    assert bytes(got) == stream(sent)[:sent], (len(got), sent)
    receiver.close()


once(lambda s: s.close())
once(lambda s: s.shutdown(socket.SHUT_WR))
once(lambda s: None, rate=2_000_000)
print("all there, three times")
