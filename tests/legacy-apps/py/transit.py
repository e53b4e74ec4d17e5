"""One process, both ends: a receiver that polls while the sender has gone up, and away, behind a full lifeline."""
import select
import socket
import sys


def stream(size):
    return bytes(i * 7 % 251 for i in range(251)) * (size // 251 + 1)


def once(last):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    sender.setblocking(False)
    receiver.setblocking(False)
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
    last(sender)
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    while True:
        assert poll.poll(20_000), f"nothing to read after {len(got)} of {sent} bytes"
        chunk = receiver.recv(100_000)
        if not chunk:
            break
        got += chunk
    assert bytes(got) == data[:sent], (len(got), sent)
    receiver.close()
    sender.close()


once(lambda s: s.close())
once(lambda s: s.shutdown(socket.SHUT_WR))
print("all there, twice")
