"""An echo server: one thread, one epoll set, all connections non-blocking."""
import select
import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
listener.setblocking(False)
ep = select.epoll()
ep.register(listener, select.EPOLLIN)
conns, pending = {}, {}
while True:
    for fd, events in ep.poll():
        if fd == listener.fileno():
            try:
                conn, _ = listener.accept()
            except BlockingIOError:
                continue
            conn.setblocking(False)
            conns[conn.fileno()], pending[conn.fileno()] = conn, bytearray()
            ep.register(conn, select.EPOLLIN)
            continue
        conn, out = conns[fd], pending[fd]
        try:
            if events & ~select.EPOLLOUT and len(out) < 1 << 20:
                data = conn.recv(65536)
                if not data:
                    raise ConnectionResetError
                out += data
            if out:
                del out[: conn.send(out)]
        except BlockingIOError:
            pass
        except ConnectionError:
            ep.unregister(fd)
            conn.close()
            del conns[fd], pending[fd]
            continue
        ep.modify(fd, (select.EPOLLIN if len(out) < 1 << 20 else 0) | (select.EPOLLOUT if out else 0))
