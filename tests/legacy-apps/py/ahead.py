"""A connection on which the sender is ahead: it has gone up, to the ring, behind a full lifeline that is hardly read."""
import socket


def stream(size):
    """What is sent, and more."""
    return bytes(i * 7 % 251 for i in range(251)) * (size // 251 + 1)


def connection():
    """Both ends, the sender's first and not blocking; how many bytes were sent, and those that were read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    sender.setblocking(False)
    data, sent, got = stream(64 << 20), 0, bytearray()

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
        got += receiver.recv(1)
        fill()
        if sent > full + (1 << 20):
            break
    return sender, receiver, sent, got
