"""Several processes hold connections together, and serve them in turns; who may do what when is drawn by lot.

Arguments: seed, number of acts. This process draws, and is the client of all connections: it sends lines, and checks that the
holder whose turn it is sends them back. The others accept, send each other sockets through pairs that all of them have, peek
into messages, duplicate, close, fork, become other programs with culvert and without it, and are killed.
"""
import ast
import os
import random
import select
import signal
import socket
import sys

PAIRS, PLACES, LIMIT = 3, 10, 30


def read_line(fd):
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            raise EOFError
        line += byte
    return line


def work(place, pairs, channels, listener):
    """Does what comes on this place's channel, and answers each act with a number."""
    pairs = [tuple(socket.socket(fileno=fd) for fd in pair) for pair in pairs]
    accepting = socket.socket(fileno=listener)
    commands, answers = channels[place]

    def answer(n):
        os.write(answers, b"%d\n" % n)

    while True:
        act, *words = read_line(commands).decode().split()
        numbers = [int(w) for w in words]
        if act == "accept":
            answer(accepting.accept()[0].detach())
        elif act == "receive":
            # socket.recv_fds ignores its flags.
            _, control, _, _ = pairs[numbers[0]][1].recvmsg(1, socket.CMSG_SPACE(4), numbers[1])
            answer(int.from_bytes(control[0][2][:4], sys.byteorder))
        elif act == "send":
            socket.send_fds(pairs[numbers[1]][0], [b"x"], [numbers[0]])
            answer(0)
        elif act == "close":
            os.close(numbers[0])
            answer(0)
        elif act == "dup":
            answer(os.dup(numbers[0]))
        elif act == "serve":
            for _ in range(numbers[1]):
                os.write(numbers[0], b"> " + read_line(numbers[0]))
            answer(0)
        elif act == "fork":
            if os.fork() == 0:
                commands, answers = channels[numbers[0]]
                place = numbers[0]
                answer(os.getpid())
        elif act == "exec":
            environment = dict(os.environ)
            kept = environment.pop("LD_PRELOAD", None) or environment.get("KEPT")
            if kept:
                environment.update({"KEPT": kept}, **({"LD_PRELOAD": kept} if numbers[0] else {}))
            raw = [p[0].fileno() for p in pairs], [p[1].fileno() for p in pairs]
            state = repr((place, list(zip(*raw)), channels, listener))
            os.execve(sys.executable, [sys.executable, __file__, "works", state], environment)


def worker(*state):
    try:
        work(*state)
    except EOFError:
        pass
    os._exit(0)


if sys.argv[1] == "works":
    state = ast.literal_eval(sys.argv[2])
    os.write(state[2][state[0]][1], b"%d\n" % os.getpid())
    worker(*state)

lot = random.Random(int(sys.argv[1]))
listener = socket.create_server(("127.0.0.1", 0))
made = [socket.socketpair() for _ in range(PAIRS)]
down, up = [os.pipe() for _ in range(PLACES)], [os.pipe() for _ in range(PLACES)]
channels = [(d[0], u[1]) for d, u in zip(down, up)]
pairs = [(a.fileno(), b.fileno()) for a, b in made]
for fd in [fd for both in pairs + channels for fd in both] + [listener.fileno()]:
    os.set_inheritable(fd, True)
history = []


def fail(why):
    print(why, *history[-40:], sep="\n", flush=True)
    end(1)


def end(status):
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    os._exit(status)


def heard(place):
    if not select.select([up[place][0]], [], [], LIMIT)[0]:
        fail(f"{place} does not answer")
    return int(read_line(up[place][0]))


def tell(place, act):
    history.append(f"{place}: {act}")
    os.write(down[place][1], act.encode() + b"\n")


def do(place, act):
    tell(place, act)
    return heard(place)


pids = {0: os.fork()}
if pids[0] == 0:
    worker(0, pairs, channels, listener.fileno())
# The client's end of each connection; who holds the other end, as place and descriptor; what lies in each pair.
clients, holders, queues = {}, {}, [[] for _ in range(PAIRS)]
lines = 0


def talk(name, holder, count):
    global lines
    tell(holder[0], f"serve {holder[1]} {count}")
    for _ in range(count):
        lines += 1
        line = b"%d of %d\n" % (lines, name)
        answer = b""
        try:
            clients[name].sendall(line)
            while not answer.endswith(b"\n") and (part := clients[name].recv(4096)):
                answer += part
        except OSError as e:
            fail(f"connection {name}, held as {holder}: {e!r}")
        if answer != b"> " + line:
            fail(f"connection {name}, held as {holder}: {answer} for {line}")
    heard(holder[0])


def let_go(holder, name):
    do(holder[0], f"close {holder[1]}")
    holders[name].discard(holder)


def forget_unheld(name):
    if not holders[name] and not any(name in q for q in queues):
        clients.pop(name).close()
        del holders[name]


WEIGHTS = {
    "accept": 4,
    "share": 6,
    "serve": 12,
    "settle": 6,
    "send": 9,
    "receive": 9,
    "peek": 2,
    "dup": 2,
    "close": 8,
    "fork": 2,
    "exec": 2,
    "kill": 1,
}
for turn in range(int(sys.argv[2])):
    act = lot.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    place, pair = lot.choice(sorted(pids)), lot.randrange(PAIRS)
    held = sorted(name for name in clients if holders[name])
    name = lot.choice(held) if held else None
    holder = lot.choice(sorted(holders[name])) if held else None
    if act == "accept" and len(clients) < 8:
        clients[turn] = socket.create_connection(listener.getsockname(), LIMIT)
        holders[turn] = {(place, do(place, "accept"))}
    elif act == "share" and not queues[pair] and len(clients) < 12:
        # A new one goes to one or two, by a message that is perhaps looked at, or sent twice.
        clients[turn] = socket.create_connection(listener.getsockname(), LIMIT)
        holder = (place, do(place, "accept"))
        holders[turn] = {holder}
        receipts = [0] * lot.choice([1, 1, 2])
        for _ in receipts:
            do(place, f"send {holder[1]} {pair}")
        if lot.random() < 0.3:
            receipts.insert(0, int(socket.MSG_PEEK))
        if lot.random() < 0.8:
            let_go(holder, turn)
        for flags in receipts:
            place = lot.choice(sorted(pids))
            holders[turn].add((place, do(place, f"receive {pair} {flags}")))
        for holder in lot.sample(sorted(holders[turn]), len(holders[turn])):
            talk(turn, holder, lot.choice([40, 80]))
    elif act in ("receive", "peek") and queues[pair]:
        fd = do(place, f"receive {pair} {int(socket.MSG_PEEK) if act == 'peek' else 0}")
        holders[queues[pair][0]].add((place, fd))
        if act == "receive":
            queues[pair].pop(0)
    elif act == "fork" and len(pids) < PLACES:
        free = min(set(range(PLACES)) - set(pids))
        tell(place, f"fork {free}")
        pids[free] = heard(free)
        for these in holders.values():
            these |= {(free, fd) for at, fd in these if at == place}
    elif act == "exec" or act == "kill" and len(pids) > 2:
        if act == "exec":
            do(place, f"exec {int(lot.random() < 0.6)}")
        else:
            os.kill(pids.pop(place), signal.SIGKILL)
        # Connections are closed on exec.
        for name in list(holders):
            holders[name] = {h for h in holders[name] if h[0] != place}
            forget_unheld(name)
    elif not held:
        continue
    elif act == "serve":
        talk(name, holder, lot.choice([1, 3, 20, 70]))
    elif act == "settle":
        for other in sorted(holders[name] - {holder}):
            let_go(other, name)
        talk(name, holder, lot.choice([40, 80]))
    elif act == "send":
        do(holder[0], f"send {holder[1]} {pair}")
        queues[pair].append(name)
        if lot.random() < 0.6:
            let_go(holder, name)
    elif act == "dup":
        holders[name].add((holder[0], do(holder[0], f"dup {holder[1]}")))
    elif act == "close":
        let_go(holder, name)
        forget_unheld(name)
print("all lines came back")
end(0)
