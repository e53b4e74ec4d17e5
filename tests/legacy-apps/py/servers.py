"""socketserver, forking and threading, and http.server; with urllib and raw clients."""
import hashlib
import http.server
import socket
import socketserver
import sys
import threading
import urllib.request

role, port = sys.argv[1], int(sys.argv[2])


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(b"0123456789" * int(self.path[1:]))

    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(hashlib.sha256(body).hexdigest().encode())

    def log_message(self, *args):
        pass


class Forking(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = 64


class Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def server():
    threading.Thread(target=Threading(("127.0.0.1", port + 1), Lines).serve_forever, daemon=True).start()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", port + 2), Http)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    Forking(("127.0.0.1", port), Lines).serve_forever()


def lines(to, n):
    with socket.create_connection(("127.0.0.1", to)) as conn, conn.makefile("rwb") as f:
        for i in range(n):
            text = f"line {i} {'x' * (i * 17 % 3000)}\n".encode()
            f.write(text)
            f.flush()
            assert f.readline() == text.upper(), i
        conn.shutdown(socket.SHUT_WR)
        return f.read()


def client():
    for to, kind in ((port, "forking"), (port + 1, "threading")):
        rests = []
        threads = [threading.Thread(target=lambda: rests.append(lines(to, 300))) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(kind, rests)
    base = f"http://127.0.0.1:{port + 2}/"
    for n in (0, 1, 1000, 500_000):
        with urllib.request.urlopen(base + str(n)) as answer:
            print("GET", n, hashlib.sha256(answer.read()).hexdigest())
    body = bytes(range(256)) * 9000
    with urllib.request.urlopen(base, data=body) as answer:
        print("POST", answer.read())


server() if role == "server" else client()
