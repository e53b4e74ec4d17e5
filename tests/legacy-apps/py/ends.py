"""The two ends of a connection in one process, as several scripts here need them."""
import socket


def pair(before=lambda listener, client: None):
    """A client and its server, which have talked a little: on rings where they can be. `before` sees their sockets first."""
    listener, client = socket.socket(), socket.socket()
    before(listener, client)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    for s in (client, server):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(20):
        client.sendall(b"ping"), server.recv(4), server.sendall(b"pong"), client.recv(4)
    return client, server
