"""A peer resets the connection while what it sent lies unread, or was read, and a program gets the connection by exec, by a
second exec, or by being started: it reads those bytes, and then it is told the error, as `reset` does."""
import os
import select
import socket
import struct
import subprocess
import sys

from reset import LAST, ORDERS, act

WAYS = "exec", "twice", "spawn", "renumbered"


def pair(warm):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for s in client, server:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(warm):
        client.sendall(b"ping")
        server.recv(4)
        server.sendall(b"pong")
        client.recv(4)
    return client, server


def reader(number, order):
    s = socket.socket(fileno=number)
    p = select.poll()
    p.register(s, select.POLLIN)
    print(order, p.poll(0)[0][1], list(act(s, order)), p.poll(0)[0][1], flush=True)


def program(way, number, order):
    return [sys.executable, __file__, way, str(number), order]


def hand_on(way, order, end, looks, before):
    """`end`: how the peer resets. `looks`: whether this program sees that before the other. `before`: so many bytes it reads."""
    client, server = pair(40)
    server.sendall(LAST)
    if end == "unread":
        # What closes a connection with bytes unread resets it (tcp_close).
        client.sendall(b"never read")
    else:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    p = select.poll()
    p.register(client, 0)
    assert p.poll(20_000), "no reset"
    if looks:
        p.modify(client, select.POLLIN | select.POLLOUT)
        print(p.poll(0)[0][1], flush=True)
    if before:
        client.recv(before)
    number = client.fileno()
    client.set_inheritable(True)
    if way == "spawn":
        subprocess.run(program("exec", number, order), pass_fds=[number], check=True)
        os._exit(0)
    if way == "renumbered":
        # What posix_spawn does with descriptors, libc does by itself.
        other = 200
        renumber = [(os.POSIX_SPAWN_DUP2, number, other), (os.POSIX_SPAWN_CLOSE, number)]
        child = os.posix_spawn(sys.executable, program("exec", other, order), os.environ, file_actions=renumber)
        os.waitpid(child, 0)
        os._exit(0)
    os.execv(sys.executable, program(way, number, order))


if __name__ == "__main__":
    if sys.argv[1:]:
        way, number, order = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        if way == "twice":
            os.execv(sys.executable, program("exec", number, order))
        reader(number, order)
        sys.exit()
    for i, order in enumerate(ORDERS):
        for j, before in enumerate((0, 1, len(LAST))):
            way, end, looks = WAYS[(i + j) % 4], ("linger", "unread")[i % 2], i // 2 % 2 == 1
            print(way, order, end, looks, before, flush=True)
            if os.fork() == 0:
                hand_on(way, order, end, looks, before)
            os.wait()
