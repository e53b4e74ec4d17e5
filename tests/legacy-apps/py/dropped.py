"""A peer goes up behind a full lifeline and resets: what the lifeline had not brought by then is lost. A program that gets
the connection as its standard input must not take what lies behind the gap for what follows, nor the end for a whole stream."""
import os
import socket
import struct
import sys

from ahead import connection, stream

READER = """
import sys
sys.path.insert(0, sys.argv[1])
import dropped
dropped.read()
"""


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
    sender, receiver, _, got = connection()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()
    os.dup2(receiver.fileno(), 0)
    os.execv(sys.executable, [sys.executable, "-c", READER, os.path.dirname(os.path.abspath(__file__)), str(len(got))])


if __name__ == "__main__":
    hand_on()
