"""multiprocessing over TCP: Listener, Client, a manager, and a pool of processes using them."""
import multiprocessing
import signal
import sys
from multiprocessing.connection import Client, Listener
from multiprocessing.managers import BaseManager
import queue

role, port = sys.argv[1], int(sys.argv[2])
KEY = b"secret"


class Manager(BaseManager):
    pass


def serve_objects():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    q = queue.Queue()
    Manager.register("queue", callable=lambda: q)
    Manager(("127.0.0.1", port + 1), KEY).get_server().serve_forever()


def server():
    # An orderly exit ends the daemon process too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    multiprocessing.Process(target=serve_objects, daemon=True).start()
    with Listener(("127.0.0.1", port), authkey=KEY, backlog=16) as listener:
        while True:
            with listener.accept() as conn:
                try:
                    while True:
                        conn.send(conn.recv())
                except EOFError:
                    pass


def client():
    with Client(("127.0.0.1", port), authkey=KEY) as conn:
        for size in (0, 1, 4096, 200_000):
            conn.send(list(range(size)))
            print(size, sum(conn.recv()))
    Manager.register("queue")
    manager = Manager(("127.0.0.1", port + 1), KEY)
    manager.connect()
    q = manager.queue()
    for i in range(200):
        q.put(("item", i))
    print("queue", [q.get() for _ in range(200)][-1], q.empty())
    # Forked workers, each with its own connection, one server that takes them in turn.
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print("pool", sorted(pool.map(echo_many, range(6))))


def echo_many(i):
    with Client(("127.0.0.1", port), authkey=KEY) as conn:
        for r in range(40):
            message = {"i": i, "r": r, "data": "y" * (r * 311)}
            conn.send(message)
            assert conn.recv() == message
    return i


server() if role == "server" else client()
