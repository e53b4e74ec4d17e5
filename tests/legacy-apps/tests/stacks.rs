//! Short stacks, and calls that a thread leaves without returning from them: by cancellation, by a jump out of a handler.

use legacy_apps::{Lab, Side, compare_one, on_ring};

/// Runs one scenario of `c/stacks.c` for each of the calls.
fn scenario(name: &str, calls: &[&str]) {
    for call in calls {
        let program = |lab: &Lab| {
            // A symbol that is looked up at its first call takes three kilobytes of stack.
            let flags = ["-pthread", "-Wl,-z,now"];
            let mut command = lab.command(Side::Client, lab.compile("stacks.c", &flags));
            command.args([name, call]);
            command
        };
        compare_one(&format!("stacks-{name}-{call}"), program, |_, log| on_ring(log) > 0);
    }
}

#[test]
fn coroutines_with_two_pages() {
    scenario("coroutine", &["recv", "poll", "select", "epoll"]);
}

/// A thread's first call makes what culvert has for a thread, and a process's first connection what it has for a process.
#[test]
fn the_first_sockets_on_the_shortest_stack() {
    scenario("first", &["thread", "handler"]);
}

#[test]
fn cancelled_on_the_shortest_stack() {
    scenario("cancel", &["recv", "poll", "select", "epoll", "sendmsg"]);
}

#[test]
fn jumped_out_of() {
    scenario("jump", &["recv", "poll", "select", "epoll", "sendmsg"]);
}
