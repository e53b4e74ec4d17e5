"""A peer sends its last bytes and resets the connection: what was sent is read, then the error comes, or it was told
before; in whatever order this side looks, asks for the error, and sends."""
import select
import socket
import struct

LAST = b"ABCDEFGH"
ORDERS = ["rr", "prr", "pprr", "p1prr", "1prr", "srr", "sprr", "grr", "gprr", "gsrr", "gs1rr", "gsprr", "gssrr", "ssrr"]


def act(s, order):
    for what in order:
        try:
            match what:
                case "g":
                    yield s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                case "s":
                    yield s.send(b"x")
                case "p":
                    yield s.recv(100, socket.MSG_PEEK)
                case "r":
                    yield s.recv(100)
                case "1":
                    yield s.recv(1)
                case "n":
                    yield s.getpeername()[0]
                case "l":
                    yield s.getsockname()[0]
                case "i":
                    # tcpi_state
                    yield s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
                case "e":
                    p = select.poll()
                    p.register(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
                    yield [events for _, events in p.poll(0)]
                case "0" | "2":
                    yield s.shutdown(socket.SHUT_RD if what == "0" else socket.SHUT_RDWR)
        except OSError as e:
            yield e.errno


def end(listener, order, warm, answered, delay):
    a = socket.create_connection(listener.getsockname())
    b, _ = listener.accept()
    with b:
        a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, not delay)
        for _ in range(warm):
            a.sendall(b"w")
            b.recv(1)
            if answered:
                b.sendall(b"w")
                a.recv(1)
        a.sendall(LAST)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        a.close()
        p = select.poll()
        p.register(b, 0)
        assert p.poll(20_000), "no reset"
        return list(act(b, order))


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for order in ORDERS:
            for answered in True, False:
                for delay in False, True:
                    if delay and not answered:
                        # Natively, the last bytes may go with the reset.
                        continue
                    for warm in range(4, 16):
                        print(order, answered, delay, warm, end(listener, order, warm, answered, delay))
