"""A connection is reset, or its peer killed with bytes unread or stopped, or this side shuts it down both ways, and calls that the
kernel makes by itself find what there is to read, and are told of the end: splice, sendfile from a pipe, vectors with flags, messages
with control data. Before and after them this side looks, asks and sends."""
import os
import select
import signal
import socket
import struct

ORDERS = ["o", "po", "opo", "eo", "Eopo", "i", "pipi", "ipo", "oi", "nop", "f", "pfp", "m", "pmp", "v", "pvpv", "w", "pwp", "wvo", "rrpo"]
ORDERS += ["so", "oso", "go", "og", "poog"]
TIMESTAMPING = 37
pipes = 0


def on_pipe(*_):
    global pipes
    pipes += 1


def act(s, order):
    for what in order:
        out, inp = os.pipe()
        before = pipes
        r = None
        try:
            match what:
                case "o":
                    os.write(inp, b"x")
                    r = os.splice(out, s.fileno(), 1)
                case "e":
                    os.set_blocking(out, False)
                    r = os.splice(out, s.fileno(), 1)
                case "E":
                    os.close(inp)
                    inp = -1
                    r = os.splice(out, s.fileno(), 1)
                case "n":
                    os.write(inp, b"x")
                    r = os.splice(out, s.fileno(), 0)
                case "i":
                    r = os.splice(s.fileno(), inp, 100)
                case "F":
                    # A full pipe.
                    os.write(inp, bytes(65_536))
                    r = os.splice(s.fileno(), inp, 100, flags=os.SPLICE_F_NONBLOCK)
                case "f":
                    os.write(inp, b"x")
                    r = os.sendfile(s.fileno(), out, None, 1)
                case "m":
                    r = s.sendmsg([b"x"], [(socket.SOL_SOCKET, TIMESTAMPING, struct.pack("I", 0))])
                case "v":
                    r = os.preadv(s.fileno(), [bytearray(100)], -1, os.RWF_HIPRI)
                case "w":
                    r = os.pwritev(s.fileno(), [b"x"], -1, os.RWF_DSYNC)
                case "r":
                    r = len(s.recv(100))
                case "s":
                    r = s.send(b"x")
                case "g":
                    r = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                case "p":
                    p = select.poll()
                    p.register(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
                    r = p.poll(0)[0][1]
        except OSError as e:
            r = type(e).__name__
        yield f"{what}={r}" + "+SIGPIPE" * (pipes - before)
        os.close(out)
        if inp >= 0:
            os.close(inp)


def peer(address, last, how):
    """Sends its last bytes, and leaves what it is sent unread."""
    with socket.create_connection(address) as s:
        for _ in range(16):
            s.sendall(b"w")
            s.recv(1)
        s.sendall(b"l" * last)
        if how in ("shut", "stopped"):
            signal.pause()
        # Until there is something: it stays unread.
        s.recv(1, socket.MSG_PEEK)
        if how == "killed":
            signal.pause()


def end(listener, order, last, how):
    child = os.fork()
    if child == 0:
        peer(listener.getsockname(), last, how)
        os._exit(0)
    s, _ = listener.accept()
    with s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(16):
            s.recv(1)
            s.sendall(b"w")
        if last:
            s.recv(last, socket.MSG_PEEK | socket.MSG_WAITALL)
        if how in ("shut", "stopped"):
            if how == "shut":
                s.shutdown(socket.SHUT_RDWR)
            else:
                os.kill(child, signal.SIGSTOP)
                os.waitpid(child, os.WUNTRACED)
            done = list(act(s, order))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return done
        s.sendall(b"unread")
        if how == "killed":
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        p = select.poll()
        p.register(s, select.POLLRDHUP)
        assert p.poll(20_000), "no end"
        return list(act(s, order))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, on_pipe)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for order in ORDERS:
            for last in 0, 5:
                for how in "closes", "killed", "shut":
                    print(order, last, how, *end(listener, order, last, how), flush=True)
        # What has been sent is there, whatever the peer does.
        for order in "iiii", "viviv", "pipip", "rivo", "oivr", "opipo", "wimv", "iFiF":
            print(order, *end(listener, order, 1_000, "stopped"), flush=True)
