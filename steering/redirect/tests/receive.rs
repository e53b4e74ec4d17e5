//! Connections that come from another host, brought to a middlebox. As root.

mod host;

use culvert_redirect::Set;
use host::remote::Remote;
use host::{BOX, Host, Middlebox, Server, compiled, is_root};

/// A middlebox that says who its client is to it, and whom that has asked for; it knows nothing of culvert.
const PYTHON: &str = "import socket, selectors
listeners = selectors.DefaultSelector()
for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::')):
    listener = socket.socket(family)
    if family == socket.AF_INET6: listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 15001))
    listener.listen()
    listeners.register(listener, selectors.EVENT_READ)
print('up', flush=True)
while True:
    for key, _ in listeners.select():
        client, peer = key.fileobj.accept()
        data = b''
        while (part := client.recv(65536)): data += part
        client.sendall(('box %s %s %s\\n' % (client.getsockname()[:2] + peer[:1])).encode() + data)
        client.close()
";

#[test]
fn connections_from_other_hosts_come_to_the_middlebox() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let remote = Remote::new("here", 67);
    let _server = Server::new(&[("10.67.0.1", 80), ("fd67::1", 80)], |_| "server".into());
    let client = compiled("client.c");
    let asks =
        |address: &str, port: &str, size: &str| remote.says(&[client.to_str().expect("a path"), address, port, size]);
    let (direct4, direct6) = ("peer 10.67.0.1:80\nserver", "peer [fd67::1]:80\nserver");
    let refused = "connect: Connection refused";
    let (tool, own) = (env!("CARGO_BIN_EXE_culvert-redirect"), host.middlebox());
    let rules = format!(
        "family ipv4 destination-ports 80-89 to 127.0.0.1 {BOX} dead closed , family ipv6 destination fd67::/64 to ::1 {BOX} dead open"
    );
    let receive = [tool, "receive", "here", "--middlebox", &own, "--rules", &rules, "--"];
    for _ in 0..2 {
        assert_eq!((asks("10.67.0.1", "80", "10"), asks("fd67::1", "80", "10")), (direct4.into(), direct6.into()));
        assert_eq!(asks("10.67.0.1", "85", "10"), refused);
        // One listener has all of these ports, and the names are those of who has asked and was asked.
        let python = Middlebox::new(&[&receive[..], &["python3.11", "-c", PYTHON]].concat());
        for port in ["80", "85", "89"] {
            let said = format!("peer 10.67.0.1:{port}\nbox 10.67.0.1 {port} 10.67.0.2");
            assert_eq!(asks("10.67.0.1", port, "1000000"), said);
        }
        assert_eq!(asks("10.67.0.1", "90", "10"), refused);
        assert_eq!(asks("fd67::1", "1234", "1000"), "peer [fd67::1]:1234\nbox fd67::1 1234 fd67::2");
        drop(python);
    }
    // The relay goes on to the server, whose connection from this host is not brought to it.
    let (box4, box6) = (format!("127.0.0.1:{BOX}"), format!("[::1]:{BOX}"));
    let relay = Middlebox::new(&[&receive[..], &[tool, "relay", "--listen", &box4, "--listen", &box6]].concat());
    assert_eq!(
        (asks("10.67.0.1", "80", "3000000"), asks("fd67::1", "80", "3000000")),
        (direct4.into(), direct6.into())
    );
    let cut = asks("10.67.0.1", "85", "10");
    assert!(cut == "peer 10.67.0.1:85\nread: Connection reset by peer" || cut.is_empty(), "{cut}");
    drop(relay);
    assert_eq!(asks("10.67.0.1", "85", "10"), refused);
    // One that lives and does not listen: what is for it is refused, or goes on.
    let asleep = Middlebox::new(&[&receive[..], &["sh", "-c", "echo up; exec sleep 1000"]].concat());
    assert_eq!((asks("10.67.0.1", "80", "10"), asks("fd67::1", "80", "10")), (refused.into(), direct6.into()));
    drop(asleep);
    assert_eq!(Set::left(&own.parse().expect("a group"), None), Ok(0));
}
