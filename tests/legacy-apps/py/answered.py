"""A server that answers before it has read the request, and closes: the answer arrives, whatever becomes of the request."""
import collections
import socket
import threading

ROUNDS = 400
ANSWER = b"404 no such thing\n"
PIECES = [b"POST / ", b"x" * (4 << 20), b"end"]


def serve(listener):
    kept, _ = listener.accept()
    for _ in range(100):
        kept.send(kept.recv(1))
    for _ in range(ROUNDS):
        s, _ = listener.accept()
        # So that both ends know each other.
        for _ in range(8):
            s.send(s.recv(1))
        s.send(ANSWER)
        s.shutdown(socket.SHUT_RDWR)
        s.close()


def ask(address):
    with socket.create_connection(address) as s:
        s.settimeout(20)
        for _ in range(8):
            s.send(b"?")
            s.recv(1)
        try:
            for piece in PIECES:
                s.sendall(piece)
        except OSError:
            # Or not: nobody knows how much of it was sent before the reset came.
            pass
        try:
            return s.recv(1000)
        except OSError as e:
            return type(e).__name__


with socket.create_server(("127.0.0.1", 0)) as listener:
    threading.Thread(target=serve, args=[listener], daemon=True).start()
    # Under culvert one that stays keeps the memory that the others use.
    kept = socket.create_connection(listener.getsockname())
    for _ in range(100):
        kept.send(b"?")
        kept.recv(1)
    for answer, n in collections.Counter(ask(listener.getsockname()) for _ in range(ROUNDS)).items():
        print(n, answer)
