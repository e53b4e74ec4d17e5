"""A program is started that inherits a connection, whose peer is stopped and has not read what was sent to it. Nothing of that
is lost."""
import os
import signal
import socket
import subprocess

listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
result, result_w = os.pipe()
peer = os.fork()
if peer == 0:
    server, _ = listener.accept()
    listener.close()
    for _ in range(40):
        server.sendall(b"x"), server.recv(1)
    os.kill(os.getpid(), signal.SIGSTOP)
    total, end = 0, b""
    try:
        while some := server.recv(1 << 20):
            total, end = total + len(some), some[-1:]
    except OSError as e:
        end = str(e).encode()
    os.write(result_w, b"%d %s" % (total, end))
    os._exit(0)

listener.close()
client = socket.create_connection(address)
for _ in range(40):
    client.recv(1), client.sendall(b"y")
os.waitpid(peer, os.WUNTRACED)
client.setblocking(False)
sent = 0
try:
    while sent < 12 << 20:
        sent += client.send(b"z" * 65536)
except BlockingIOError:
    pass
client.setblocking(True)
client.set_inheritable(True)
subprocess.run(["true"], close_fds=False, check=True)
os.kill(peer, signal.SIGCONT)
client.sendall(b"e")
client.close()
print("arrived", os.read(result, 99) == b"%d e" % (sent + 1))
os.waitpid(peer, 0)
