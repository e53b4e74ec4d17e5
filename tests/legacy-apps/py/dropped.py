"""A peer goes up behind a full lifeline and resets: what the lifeline had not brought by then is lost. A program that gets
the connection as its standard input must not take what lies behind the gap for what follows, nor the end for a whole stream."""
import os
import socket
import struct
import sys

READER = """
import sys
sys.path.insert(0, sys.argv[1])
import dropped
dropped.read()
"""


def stream(size):
    return bytes(i * 7 % 251 for i in range(251)) * (size // 251 + 1)


def read():
    got, end = bytearray(int(sys.argv[2])), "end"
    try:
        while some := os.read(0, 1 << 20):
            got += some
    except OSError:
        end = "error"
    # The first ones were read before.
    whole = stream(len(got))[:len(got)]
    print("in order:", got[int(sys.argv[2]):] == whole[int(sys.argv[2]):], "and then:", end)


def hand_on():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    sender.setblocking(False)
    data, sent, got = stream(64 << 20), 0, 0

    def fill():
        nonlocal sent
        while True:
            try:
                sent += sender.send(data[sent:sent + (1 << 18)])
            except BlockingIOError:
                return

    fill()
    full = sent
    # Under culvert, the connection is attached in these steps, and the sender goes up behind what it has sent.
    for _ in range(200):
        got += len(receiver.recv(1))
        fill()
        if sent > full + (1 << 20):
            break
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()
    os.dup2(receiver.fileno(), 0)
    os.execv(sys.executable, [sys.executable, "-c", READER, os.path.dirname(os.path.abspath(__file__)), str(got)])


if __name__ == "__main__":
    hand_on()
