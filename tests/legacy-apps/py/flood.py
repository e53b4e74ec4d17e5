"""A peer that sends far more than is read of it, stops reading, and is killed: its end must be seen by who waits
to send, although a FIN cannot get through."""
import errno
import select
import socket
import subprocess
import sys
import time

if sys.argv[1:]:
    peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    peer.setblocking(False)
    refused = answers = 0
    while True:
        try:
            answers += len(peer.recv(1200 - answers) if answers < 1200 else b"")
        except BlockingIOError:
            pass
        try:
            peer.send(bytes(1 << 18))
            refused = 0
        except BlockingIOError:
            refused += 1
            if refused == 50:
                print("full", flush=True)
            time.sleep(0.002)

with socket.create_server(("127.0.0.1", 0)) as listener:
    child = subprocess.Popen([sys.executable, __file__, str(listener.getsockname()[1])], stdout=subprocess.PIPE)
    s, _ = listener.accept()
assert child.stdout.readline() == b"full\n"
# Under culvert, the connection is attached in these steps.
for _ in range(200):
    s.recv(100)
    s.send(b"answer")
    time.sleep(0.005)
s.setblocking(False)
poll = select.poll()
poll.register(s, select.POLLOUT)
while poll.poll(300):
    try:
        s.send(bytes(1 << 18))
    except BlockingIOError:
        pass
child.kill()
child.wait()
print([hex(e) for _, e in poll.poll(20_000)])
for _ in range(2):
    try:
        s.send(b"more")
    except OSError as e:
        print(errno.errorcode[e.errno])
