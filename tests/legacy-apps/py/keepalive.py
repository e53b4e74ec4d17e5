"""Sends requests over connections that stay open, and says what came back. Arguments: port, connections, requests on each.

Then waits for the end of its standard input, with all connections open.
"""
import hashlib
import http.client
import sys

port, count, requests = map(int, sys.argv[1:])
connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(count)]
answers = hashlib.sha256()
wrong = 0
for i in range(requests):
    for k, c in enumerate(connections):
        # Small ones, and a few that fill a ring's home or the kernel's buffers.
        body = f"{i} {k};".encode() * (1 + (100_000 if i % 37 == 36 else i * 17 % 300))
        c.request("POST", "/", body)
        answer = c.getresponse().read()
        wrong += answer != body
        answers.update(answer)
print(f"{count * requests} answers, {wrong} wrong, {answers.hexdigest()}", flush=True)
sys.stdin.read()
