"""A server lowers its limit of descriptors after its first connection: from then on all of those are its own. Each client is a program."""
import os
import resource
import select
import socket
import subprocess
import sys

NUMBERS = resource.RLIMIT_NOFILE
if sys.argv[1] == "client":
    # Inherited, before there is anything of culvert's.
    resource.setrlimit(NUMBERS, (int(sys.argv[3]), resource.getrlimit(NUMBERS)[1]))
    s = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    s.sendall(b"ping")
    while s.recv(4):
        s.sendall(b"ping")
    sys.exit()

listener = socket.create_server(("127.0.0.1", 0))
command = [sys.executable, "-u", __file__, "client", str(listener.getsockname()[1]), str(resource.getrlimit(NUMBERS)[0])]


def serve(connection):
    for _ in range(60):
        assert connection.recv(4) == b"ping"
        connection.sendall(b"pong")


def room():
    """For how many descriptors more."""
    made = []
    try:
        while True:
            made.append(os.dup(0))
    except OSError:
        return len(made)
    finally:
        for fd in made:
            os.close(fd)


def client():
    program = subprocess.Popen(command)
    connection, _ = listener.accept()
    serve(connection)
    return program, connection


first = client()
resource.setrlimit(NUMBERS, (64, resource.getrlimit(NUMBERS)[1]))
clients = [first]
print(room())
for _ in range(3):
    clients.append(client())
    print(room())
sets = []
for _ in range(5):
    s = select.epoll()
    s.register(first[1], select.EPOLLIN)
    first[1].sendall(b"pong")
    print(s.poll(20) == [(first[1].fileno(), select.EPOLLIN)], first[1].recv(4), room())
    sets.append(s)
for program, connection in clients:
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    print(program.wait())
