//! The peers that the tests start where no packaged program does what a test needs. An ordinary
//! program: it knows nothing of culvert.

mod echo;
mod habits;
mod http;
mod inetd;
mod jail;
mod memcached;
mod stream;

use std::process::ExitCode;

const USAGE: &str = "\
legacy-peer [close-all] [dup-over] [ask-for-filters] [daemon] COMMAND
  forbid CALL,... PROGRAM...        exec PROGRAM under a filter that refuses these system calls
  echo PORT                         serve: send back what comes, a thread per connection
  ping PORT CONNECTIONS COUNT SIZE  COUNT exchanges of SIZE bytes on each connection, checked
  ping-on PORT SIZE                 one connection, until standard input ends; a line per 100 exchanges
  stream-server PORT                serve: checked streams both ways, a line per connection's end
  stream-client PORT N SEED         N such connections until they end
  http PORT PATH N                  GET on N kept-alive connections until standard input ends
  memcached PORT THREADS ROUNDS     set and get values of many sizes, checked
  inetd PORT LINES -- PROGRAM...    serve: answer LINES lines, then fork and exec PROGRAM on the socket
  jail PORT READS keep|drop         serve: echo in a child that allows itself few calls after READS reads
  talk PORT LINES                   client of inetd: LINES lines, then standard input; prints the answer";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
    while let Some(&first) = words.first() {
        match first {
            "close-all" => habits::close_all(),
            "dup-over" => habits::dup_over(),
            "ask-for-filters" => habits::ask_for_filters(),
            "daemon" => habits::daemon(),
            _ => break,
        }
        words.remove(0);
    }
    let done = match words.as_slice() {
        ["forbid", calls, program @ ..] if !program.is_empty() => habits::forbid(calls, program),
        ["echo", port] => echo::serve(number(port)),
        ["ping", port, n, count, size] => echo::ping(number(port), number(n), number(count), number(size)),
        ["ping-on", port, size] => echo::ping_on(number(port), number(size)),
        ["stream-server", port] => stream::serve(number(port)),
        ["stream-client", port, n, seed] => stream::drive(number(port), number(n), number(seed)),
        ["http", port, path, n] => http::load(number(port), path, number(n)),
        ["memcached", port, threads, rounds] => memcached::run(number(port), number(threads), number(rounds)),
        ["inetd", port, lines, "--", program @ ..] if !program.is_empty() => {
            inetd::serve(number(port), number(lines), program)
        }
        ["jail", port, reads, parent @ ("keep" | "drop")] => {
            jail::serve(number(port), number(reads), *parent == "keep")
        }
        ["talk", port, lines] => inetd::talk(number(port), number(lines)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("legacy-peer {}: {e}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| {
        eprintln!("{text}: not a number\n{USAGE}");
        std::process::exit(2)
    })
}
