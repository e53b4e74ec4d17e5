"""A program that gets a connection and an epoll set by exec, with bytes unread that a busy peer had sent: what that set says.

Argument: a case. The peer is another process, which calls nothing on its connection unless it is told to. Prints the same
natively and under culvert.
"""
import os
import select
import signal
import socket
import struct
import sys
import threading

import ends
from epolls import CTL_ADD, CTL_DEL, CTL_MOD, ET, IN, ONESHOT, OUT, PATIENCE, RDHUP, Set, drain, libc, say, settled

UNREAD = b"unread" * 50


def peer(port, orders, done):
    s = socket.create_connection(("127.0.0.1", port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ends.ask(s)
    s.sendall(UNREAD)
    os.write(done, b".")
    while order := os.read(orders, 1):
        if order == b"m":
            s.sendall(b"more")
        else:
            s.close()
        os.write(done, b".")
    os._exit(0)


class Heir:
    """What an image has: the connection, a set, and the peer's ear."""

    def __init__(self, numbers):
        fd, ep, self.orders, self.done, *self.rest = self.numbers = numbers
        self.b = socket.socket(fileno=fd)
        self.b.setblocking(False)
        self.s = Set()
        self.s.ep.close()
        self.s.ep = select.epoll.fromfd(ep)
        self.s.names[fd] = "b"

    def order(self, what):
        os.write(self.orders, what)
        os.read(self.done, 1)

    def more(self):
        self.order(b"m")
        settled(self.b, 4)

    def ctl(self, op, events=0):
        try:
            self.s.exactly(op, self.b, events)
        except OSError as e:
            print("refused", e.errno)

    def become(self, case):
        for n in self.numbers:
            os.set_inheritable(n, True)
        self.s.ep.fileno()
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, __file__, case, *map(str, self.numbers)])


def begin(case):
    """Becomes the image of a case, with everything in place, or runs it here."""
    heard, orders = os.pipe()
    done, said = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            os.close(orders)
            os.close(done)
            peer(listener.getsockname()[1], heard, said)
        os.close(heard)
        os.close(said)
        b, _ = listener.accept()
    b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ends.answer(b)
    os.read(done, 1)
    settled(b, len(UNREAD))
    ep = select.epoll()
    h = Heir([b.detach(), os.dup(ep.fileno()), orders, done])
    h.peer = child
    if case + "_before" in globals():
        globals()[case + "_before"](h)
    if case + "_here" in globals():
        globals()[case + "_here"](h)
    else:
        h.become(case + "_on")


def level_on(h):
    h.ctl(CTL_ADD, IN | OUT)
    say("added", h.s.next())
    h.ctl(CTL_ADD, IN)
    print(len(h.b.recv(100)))
    say("some", h.s.now())
    print(drain(h.b))
    say("read", h.s.now())
    h.more()
    say("more", h.s.next())
    print(drain(h.b))
    h.ctl(CTL_MOD, IN | RDHUP)
    say("changed", h.s.now())
    h.order(b"c")
    say("closed", h.s.next())


def other_events_on(h):
    h.ctl(CTL_ADD, OUT | RDHUP)
    say("added", h.s.next())
    h.ctl(CTL_MOD, IN | RDHUP)
    say("changed", h.s.next())
    h.ctl(CTL_MOD, OUT)
    say("changed", h.s.next())
    h.order(b"c")
    h.ctl(CTL_MOD, IN | RDHUP)
    # The FIN is on its way.
    p = select.poll()
    p.register(h.b, select.POLLRDHUP)
    p.poll()
    say("closed", h.s.now())
    print(drain(h.b))
    say("read", h.s.now())


def edge_on(h):
    h.ctl(CTL_ADD, IN | OUT | ET)
    say("added", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_MOD, IN | ET)
    say("changed", h.s.next())
    print(drain(h.b))
    say("read", h.s.now())
    h.more()
    say("more", h.s.next())
    say("again", h.s.now())


def oneshot_on(h):
    h.ctl(CTL_ADD, IN | ONESHOT)
    h.ctl(CTL_ADD, IN | ONESHOT)
    say("added", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_ADD, IN | ONESHOT)
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.next())
    h.ctl(CTL_MOD, OUT | ONESHOT)
    say("for room", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.next())
    print(drain(h.b))
    h.more()
    say("not armed", h.s.now())
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.next())
    print(drain(h.b))
    h.ctl(CTL_MOD, IN)
    say("level", h.s.now())
    h.more()
    say("more", h.s.next())


def killed_on(h):
    """A oneshot that a process has registered which is killed then: whoever has the set, too, finds it there."""
    child = os.fork()
    if child == 0:
        h.ctl(CTL_ADD, IN | ONESHOT)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    h.ctl(CTL_ADD, IN | ONESHOT)
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.next())
    say("again", h.s.now())
    print(drain(h.b))
    h.more()
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("more", h.s.next())
    h.ctl(CTL_DEL)


def read_before_on(h):
    """A oneshot whose bytes are read before anybody waits is armed still."""
    h.ctl(CTL_ADD, IN | ONESHOT)
    print(drain(h.b))
    say("read", h.s.now())
    h.ctl(CTL_ADD, IN)
    h.more()
    say("more", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_DEL)
    h.ctl(CTL_DEL)


def removed_on(h):
    for events in (IN, IN | ET, IN | ONESHOT):
        h.ctl(CTL_ADD, events)
        h.ctl(CTL_DEL)
        say("removed", h.s.now())
        h.ctl(CTL_DEL)
        h.ctl(CTL_MOD, events)
        h.ctl(CTL_ADD, events)
        say("added", h.s.next())
        h.ctl(CTL_DEL)
    h.ctl(CTL_ADD, IN)
    h.b.close()
    say("closed", h.s.now())


def duplicates_on(h):
    """The set and the connection by other numbers."""
    h.ctl(CTL_ADD, IN | ONESHOT)
    other = select.epoll.fromfd(os.dup(h.s.ep.fileno()))
    h.s.ep.close()
    h.s.ep = other
    twice = h.b.dup()
    h.s.add(twice, IN | ET, "twice")
    say("both", h.s.next())
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.next())
    print(drain(twice))
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("read", h.s.now())
    h.more()
    say("more", h.s.next())


def sleeper_on(h):
    """Who sleeps in the set already is woken."""
    for events in (IN, IN | ET, IN | ONESHOT):
        told = []
        thread = threading.Thread(target=lambda: told.extend(h.s.next()))
        thread.start()
        while True:
            with open(f"/proc/self/task/{thread.native_id}/syscall") as f:
                # epoll_wait, epoll_pwait, epoll_pwait2
                if f.read().split()[0] in ("232", "281", "441"):
                    break
            os.sched_yield()
        h.ctl(CTL_ADD, events)
        thread.join()
        say("woken", told)
        h.ctl(CTL_DEL)


def same_data_on(h):
    """Something else in the set has the data of the connection: what it tells, once, is told, and not for the connection."""
    r, w = os.pipe()
    for fd, events in ((h.b.fileno(), IN), (w, OUT | ET)):
        event = struct.pack("=Iq", events, h.b.fileno())
        assert libc.epoll_ctl(h.s.ep.fileno(), CTL_ADD, fd, event) == 0
    say("both", h.s.next())
    say("again", h.s.now())
    os.close(w)
    os.close(r)
    h.ctl(CTL_MOD, IN | OUT)
    say("alone", h.s.now())


def closed_on(h):
    """A oneshot by a number that is closed, while another keeps the connection: armed still when the bytes are read."""
    number = h.b.dup()
    h.s.add(number, IN | ONESHOT, "closed")
    number.close()
    print(drain(h.b))
    say("read", h.s.now())
    h.more()
    print("more", [e for _, e in h.s.ep.poll(PATIENCE)])
    print("again", [e for _, e in h.s.ep.poll(0)])


def crowded_on(h):
    """More registrations for such bytes than there are places: a oneshot tells, if only of the end."""
    h.ctl(CTL_ADD, OUT)
    other = Set()
    p = select.poll()
    p.register(other.ep, select.POLLIN)
    p.poll(0)
    numbers = [h.b.dup() for _ in range(256)]
    for n in numbers:
        other.add(n, IN, "other")
    h.ctl(CTL_MOD, IN | ONESHOT)
    print(len(h.s.next()))


def around_on(h):
    """The set is watched by another one, and by poll."""
    outer = select.epoll()
    outer.register(h.s.ep, IN)
    p = select.poll()
    p.register(h.s.ep, select.POLLIN)
    seen = lambda what: print(what, len(outer.poll(0)), len(p.poll(0)))
    seen("empty")
    h.ctl(CTL_ADD, IN)
    seen("added")
    print(len(h.b.recv(100)))
    seen("some")
    print(drain(h.b))
    seen("read")


def own_set_on(h):
    """A set of the image's own, which another one watches afterwards; and before."""
    for first in (True, False):
        s = Set()
        if first:
            s.add(h.b, IN, "b")
            say("own", s.next())
        p = select.poll()
        p.register(s.ep, select.POLLIN)
        print("poll", len(p.poll(0)))
        if not first:
            s.add(h.b, IN, "b")
        print("poll", len(p.poll(PATIENCE * 1000)))
        say("own", s.next())
        if not first:
            print(drain(h.b))
            print("poll", len(p.poll(0)))
            h.more()
            print("poll", len(p.poll(PATIENCE * 1000)))
            say("more", s.next())


def polled(h):
    """A look at the set by poll: from then on the set is the kernel's."""
    p = select.poll()
    p.register(h.s.ep, select.POLLIN)
    return len(p.poll(0))


def whole(h):
    """The peer is killed, and all that it sent is there."""
    os.kill(h.peer, signal.SIGKILL)
    os.waitpid(h.peer, 0)
    print(drain(h.b))
    say("end", h.s.next())


def watched_here(h):
    """A set with the connection in it becomes the kernel's while the peer is busy."""
    h.ctl(CTL_ADD, IN | RDHUP)
    say("added", h.s.next())
    print("poll", polled(h))
    say("still", h.s.next())
    whole(h)


def watched_before_here(h):
    print("poll", polled(h))
    h.ctl(CTL_ADD, IN | RDHUP | ET)
    print("poll", polled(h))
    say("added", h.s.next())
    say("again", h.s.now())
    whole(h)


def watched_for_room_here(h):
    h.ctl(CTL_ADD, OUT)
    say("added", h.s.next())
    print("poll", polled(h))
    h.ctl(CTL_MOD, IN | RDHUP)
    say("changed", h.s.next())
    whole(h)


def spawn_with_the_set(h):
    """A child inherits the set, by oversight."""
    os.set_inheritable(h.s.ep.fileno(), True)
    child = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitpid(child, 0)


def spawned_here(h):
    spawn_with_the_set(h)
    h.ctl(CTL_ADD, IN | RDHUP | ONESHOT)
    say("added", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_MOD, IN | RDHUP)
    say("changed", h.s.next())
    whole(h)


def kept_before(h):
    """The set has the connection before the exec."""
    h.ctl(CTL_ADD, IN | RDHUP)
    say("before", h.s.next())


def kept_on(h):
    say("kept", h.s.next())
    print(len(h.b.recv(100)))
    say("some", h.s.now())
    print(drain(h.b))
    say("read", h.s.now())
    h.more()
    say("more", h.s.next())


def kept_oneshot_before(h):
    h.ctl(CTL_ADD, IN | RDHUP | ONESHOT)


def kept_oneshot_on(h):
    say("kept", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_MOD, IN | ET)
    say("changed", h.s.next())
    print(drain(h.b))
    h.more()
    say("more", h.s.next())


def kept_fired_before(h):
    h.ctl(CTL_ADD, IN | ONESHOT)
    say("before", h.s.next())


def kept_fired_on(h):
    say("kept", h.s.now())
    h.ctl(CTL_MOD, IN | RDHUP)
    say("changed", h.s.next())
    print(drain(h.b))
    h.order(b"c")
    say("closed", h.s.next())


def others_of(h, fds):
    """What is ready in the set beside the connection; of each kind of registration one that tells only once."""
    for fd, events in zip(fds, (IN | ET, IN | ONESHOT, IN)):
        h.s.add(fd, events, "pipe")


def ready_pipes():
    fds = []
    for _ in range(3):
        r, w = os.pipe()
        os.write(w, b"x")
        fds.append(r)
    return fds


def fired_here(h):
    """A oneshot that has fired does not tell of the end either, whoever has got the set meanwhile. What the set had to tell
    beside it, it tells."""
    h.ctl(CTL_ADD, IN | ONESHOT)
    say("fired", h.s.next())
    others_of(h, ready_pipes())
    mine, other = socket.socketpair()
    h.s.add(mine, IN | OUT | ONESHOT, "pair")
    spawn_with_the_set(h)
    # It had room to tell of before, and is to tell of this as well.
    other.send(b"x")
    say("spawned", h.s.now())
    say("again", h.s.now())
    h.b.shutdown(socket.SHUT_RDWR)
    say("shut down", h.s.now())
    h.ctl(CTL_MOD, IN | RDHUP | ONESHOT)
    say("armed", h.s.next())


def fired_exec_before(h):
    h.ctl(CTL_ADD, IN | ONESHOT)
    say("fired", h.s.next())
    pipes = ready_pipes()
    others_of(h, pipes)
    for fd in pipes:
        os.set_inheritable(fd, True)
    h.numbers += pipes


def fired_exec_on(h):
    for fd in h.rest:
        h.s.names[fd] = "pipe"
    say("kept", h.s.now())
    say("again", h.s.now())
    h.order(b"c")
    h.b.shutdown(socket.SHUT_RDWR)
    say("shut down", h.s.now())
    h.ctl(CTL_MOD, IN | RDHUP | ONESHOT)
    say("armed", h.s.next())


def start_image(h, case, closing):
    """Another image gets the set by fork and exec, and the connection, or not. Both can talk by h.orders and h.done of its own."""
    heard, orders = os.pipe()
    done, said = os.pipe()
    # The connection's number is needed as the data only.
    names = [h.b.fileno(), h.s.ep.fileno(), heard, said]
    sys.stdout.flush()
    if os.fork() == 0:
        if closing:
            h.b.close()
        for n in names[closing:]:
            os.set_inheritable(n, True)
        os.execv(sys.executable, [sys.executable, __file__, case, *map(str, names)])
    os.close(heard)
    os.close(said)
    os.read(done, 1)
    return orders, done


class Image:
    """What such an image has."""

    def __init__(self, numbers):
        self.b, ep, self.heard, self.said = numbers
        self.ep = select.epoll.fromfd(ep)
        os.write(self.said, b".")
        os.read(self.heard, 1)


def told_elsewhere_here(h):
    """A child that has closed the connection runs another image with the set: it is told of the connection, which is its parent's."""
    h.ctl(CTL_ADD, IN)
    print(drain(h.b))
    say("before", h.s.now())
    orders, done = start_image(h, "told_elsewhere_image", True)
    say("started", h.s.now())
    h.more()
    os.write(orders, b".")
    os.wait()
    say("here", h.s.next())
    print(drain(h.b))


def told_elsewhere_image(numbers):
    i = Image(numbers)
    print("there", [(fd == i.b, e) for fd, e in i.ep.poll(PATIENCE)])
    sys.stdout.flush()


def strangers_here(h):
    """Both wait on the set: what the image is told has the data that the program registered."""
    h.ctl(CTL_ADD, IN | ET)
    print(drain(h.b))
    orders, done = start_image(h, "strangers_image", True)
    # From here on this process knows that the set is the kernel's.
    say("started", h.s.now())
    over = threading.Event()

    def wait():
        while not over.is_set():
            h.s.ep.poll(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    os.write(orders, b".")
    for _ in range(200):
        h.more()
        drain(h.b)
    os.close(orders)
    print("strange", os.read(done, 100))
    over.set()
    thread.join()


def strangers_image(numbers):
    i = Image(numbers)
    p = select.poll()
    p.register(i.heard, select.POLLHUP)
    strange = 0
    while not p.poll(0):
        strange += sum(fd != i.b for fd, _ in i.ep.poll(0.01))
    os.write(i.said, b"%d" % strange)


def kept_closed_before(h):
    """The set knows the connection by a number that has been closed."""
    number = h.b.dup()
    h.s.add(number, IN | RDHUP, "closed")
    number.close()


def kept_closed_on(h):
    print("kept", h.s.ep.poll(PATIENCE)[0][1])
    print(drain(h.b))
    print("read", len(h.s.ep.poll(0)))
    h.more()
    print("more", h.s.ep.poll(PATIENCE)[0][1])


def kept_for_room_before(h):
    h.ctl(CTL_ADD, OUT | ET)


def kept_for_room_on(h):
    say("kept", h.s.next())
    h.ctl(CTL_MOD, IN | OUT | ET)
    say("changed", h.s.next())
    print(drain(h.b))


def two_sets_on(h):
    """Another set has the connection, too, for something else."""
    other = Set()
    other.add(h.b, OUT | RDHUP, "other")
    polled_set = select.poll()
    polled_set.register(other.ep, select.POLLIN)
    polled_set.poll()
    for events in (IN, IN | ONESHOT):
        h.ctl(CTL_MOD if events & ONESHOT else CTL_ADD, events)
        say("this", h.s.next())
        say("other", other.next())


def further_on(h):
    """A oneshot for bytes that were handed on, and a second exec."""
    h.ctl(CTL_ADD, IN | ONESHOT)
    h.become("further_still")


def further_still(h):
    say("armed", h.s.next())
    say("again", h.s.now())
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.next())
    print(drain(h.b))


def further_spawned_on(h):
    """A child that had the bytes, too, for a moment, and then a second exec."""
    h.ctl(CTL_ADD, IN)
    child = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitpid(child, 0)
    say("spawned", h.s.next())
    h.become("further_spawned_still")


def further_spawned_still(h):
    say("kept", h.s.next())
    print(drain(h.b))
    say("read", h.s.now())


def read_elsewhere_on(h):
    """Another image reads what a set of this one tells of."""
    h.ctl(CTL_ADD, IN)
    say("added", h.s.next())
    orders, done = start_image(h, "read_elsewhere_image", False)
    os.write(orders, b".")
    os.read(done, 1)
    say("read there", h.s.now())
    print("poll", polled(h))
    h.ctl(CTL_MOD, IN | ONESHOT)
    say("armed", h.s.now())
    h.more()
    say("more", h.s.next())
    print(drain(h.b))
    os.close(orders)
    os.wait()


def read_elsewhere_image(numbers):
    i = Image(numbers)
    print("there", drain(socket.socket(fileno=i.b)))
    sys.stdout.flush()
    os.write(i.said, b".")
    os.read(i.heard, 1)


if __name__ == "__main__":
    case, numbers = sys.argv[1], [int(n) for n in sys.argv[2:]]
    if case.endswith("_image"):
        globals()[case](numbers)
    elif numbers:
        globals()[case](Heir(numbers))
    else:
        begin(case)
