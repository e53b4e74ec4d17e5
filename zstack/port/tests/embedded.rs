//! The example of a program with a stack of its own: two of them, and clients of the kernel's, on tun devices in a namespace whose kernel
//! forwards between them.

#[path = "../examples/http_files.rs"]
mod http_files;
mod lab;

use lab::{Namespace, bounded, noise, soon};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zstack_port::Spec;

const LIMIT: Duration = Duration::from_secs(60);
const SERVER: &str = "tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1";
const CLIENT: &str = "tun:zc0,addr=10.8.0.2/24,peer=10.8.0.1";

fn spec(port: &str) -> Spec {
    port.parse().expect("a port")
}

/// One request on a connection of the kernel's: the answer's head, and its body.
fn ask(stream: &mut TcpStream, request: &str) -> (String, Vec<u8>) {
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("a write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; if request.starts_with("HEAD") { 0 } else { length.parse().expect("a length") }];
    stream.read_exact(&mut body).expect("a body");
    (head, body)
}

#[test]
fn a_program_with_a_stack_of_its_own_serves_files_without_a_copy() {
    need_root!();
    bounded(LIMIT, || {
        let directory = std::env::temp_dir().join(format!("zstack-embedded-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let files = [("large", noise(1, 5_000_003)), ("small", noise(2, 700)), ("empty", Vec::new())];
        for (name, bytes) in &files {
            std::fs::write(directory.join(name), bytes).expect("a file");
        }
        let namespace = Namespace::new();
        namespace.sysctl("ipv4/ip_forward", "1");
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                namespace.enter();
                http_files::serve(&spec(SERVER), &directory, &end).unwrap_or_else(|e| panic!("{e}"))
            });
            let mut heads = 0;
            let mut bodies = 0;
            namespace.within(|| {
                let address = "10.9.0.2:80".parse().expect("an address");
                let connect = || TcpStream::connect_timeout(&address, LIMIT).ok();
                let mut stream = soon("the server", LIMIT, || {
                    assert!(!server.is_finished(), "the server has ended");
                    connect()
                });
                stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
                for (name, bytes) in files.iter().cycle().take(6) {
                    let (head, body) = ask(&mut stream, &format!("GET /{name}"));
                    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body == *bytes, "{name}: {head} {}", body.len());
                    (heads, bodies) = (heads + head.len(), bodies + body.len());
                }
                for (request, status) in
                    [("HEAD /small", "200 OK"), ("GET /none", "404 Not Found"), ("PUT /a", "501 Not")]
                {
                    let (head, body) = ask(&mut stream, request);
                    assert!(head.starts_with(&format!("HTTP/1.1 {status}")) && body.is_empty(), "{request}: {head}");
                    heads += head.len();
                }
                assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
            });
            // The other engine: the kernel forwards between the two.
            for (name, bytes) in &files {
                let mut got = Vec::new();
                let server = "10.9.0.2:80".parse().expect("an address");
                let (status, copies) = namespace.within(|| {
                    http_files::get(&spec(CLIENT), server, name, &mut got).unwrap_or_else(|e| panic!("{name}: {e}"))
                });
                assert!(status == "HTTP/1.1 200 OK" && got == *bytes, "{name}: {status} {}", got.len());
                assert_eq!((copies.written, copies.read), (0, 0), "{copies:?}");
                heads += format!("{status}\r\nContent-Length: {}\r\n\r\n", bytes.len()).len();
                bodies += bytes.len();
            }
            end.store(true, Ordering::Relaxed);
            let copies = server.join().expect("the server");
            // Each file from where it is mapped, each head where it was written.
            assert_eq!((copies.referenced, copies.committed), (bodies as u64, heads as u64), "{copies:?}");
            assert_eq!((copies.written, copies.read), (0, 0), "{copies:?}");
        });
        let _ = std::fs::remove_dir_all(&directory);
    });
}
