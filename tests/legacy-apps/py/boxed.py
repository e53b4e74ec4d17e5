"""One end of a connection between two containers.

server ADDRESS PORT: echoes one connection.
client ADDRESS PORT: 500 exchanges of all sizes up to 8 KiB, a line, and more of them until standard input ends.
"""
import os
import select
import socket
import sys

what, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])

if what == "server":
    listener = socket.create_server((address, port))
    connection, _ = listener.accept()
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    sys.exit()

connection = socket.create_connection((address, port))
done = 0
while done < 500 or not select.select([sys.stdin], [], [], 0)[0]:
    message = os.urandom(1 + done * 37 % 8192)
    connection.sendall(message)
    answer = b""
    while len(answer) < len(message):
        part = connection.recv(1 << 16)
        assert part, "the server ended the connection"
        answer += part
    assert answer == message, "the echo differs"
    done += 1
    if done == 500:
        print("500 exchanges", flush=True)
