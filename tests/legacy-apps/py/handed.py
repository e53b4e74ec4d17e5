"""Servers whose sockets come from another process, as Python's libraries and service managers hand them on.

Argument: how. A child is the client, which says how many answers it has got.
"""
import multiprocessing
import multiprocessing.reduction
import os
import socket
import sys

how = sys.argv[1]


def serve(connection):
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    connection.close()


def client(address):
    with socket.create_connection(address) as s:
        right = 0
        for i in range(300):
            message = f"{i};".encode() * (1 + i)
            s.sendall(message)
            answer = b""
            while len(answer) < len(message) and (part := s.recv(1 << 16)):
                answer += part
            right += answer == message
        print(right, "answers", flush=True)


def by_handle(pipe):
    """multiprocessing.reduction, through a pipe that is a pair of sockets."""
    serve(socket.socket(fileno=multiprocessing.reduction.recv_handle(pipe)))


def by_queue(queue):
    """A pickled socket, which its receiver fetches from a Unix socket with a name."""
    serve(queue.get())


if how in ("first-descriptor", "third-descriptor"):
    # Another program gets the listener, as from inetd or php-fpm's master (0), or from systemd (3, LISTEN_FDS).
    number = 0 if how == "first-descriptor" else 3
    if len(sys.argv) > 2:
        listener = socket.socket(fileno=number)
        connection, _ = listener.accept()
        serve(connection)
        sys.exit()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    server = os.fork()
    if server == 0:
        os.dup2(listener.fileno(), number)
        os.set_inheritable(number, True)
        os.execve(sys.executable, [sys.executable, __file__, how, "serve"], {**os.environ, "LISTEN_FDS": "1"})
    listener.close()
    client(address)
    print(os.waitpid(server, 0)[1])
    sys.exit()

context = multiprocessing.get_context("fork")
listener = socket.create_server(("127.0.0.1", 0))
process = context.Process(target=client, args=(listener.getsockname(),))
process.start()
if how == "handle":
    mine, theirs = context.Pipe()
    worker = context.Process(target=by_handle, args=(theirs,))
    worker.start()
    connection, _ = listener.accept()
    multiprocessing.reduction.send_handle(mine, connection.fileno(), worker.pid)
    connection.close()
else:
    queue = context.Queue()
    worker = context.Process(target=by_queue, args=(queue,))
    worker.start()
    connection, _ = listener.accept()
    queue.put(connection)
    process.join()
    connection.close()
process.join()
worker.join()
print(process.exitcode, worker.exitcode)
