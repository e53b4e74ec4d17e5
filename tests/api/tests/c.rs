//! `culvert.h`: against what the library exports, and its examples, compiled as strictly as can be, with and without
//! AddressSanitizer.

use culvert_api_tests::{Lab, Server, With, library, root, succeeds};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object as _, ObjectSymbol as _};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;

fn example(name: &str) -> PathBuf {
    root().join("api/examples/c").join(name)
}

/// The names that the library gives to the header's functions.
fn exported() -> BTreeSet<String> {
    fn names<H: FileHeader<Endian = Endianness>>(file: &object::read::elf::ElfFile<'_, H>) -> BTreeSet<String> {
        let symbols = file.dynamic_symbols().filter(|s| s.is_definition());
        symbols.filter_map(|s| s.name().ok()).filter(|n| n.starts_with("culvert")).map(str::to_owned).collect()
    }
    let bytes =
        std::fs::read(library()).expect("the library: build it with `cargo build --release`, or set CULVERT_LIB");
    names(&ElfFile64::<Endianness>::parse(&*bytes).expect("a library"))
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let header = std::fs::read_to_string(root().join("api/include/culvert.h")).expect("the header");
    let declared: BTreeSet<String> = header
        .split("CULVERT_NAME(\"")
        .skip(1)
        .map(|rest| format!("culvert_1_{}", rest.split('"').next().unwrap_or("")))
        .collect();
    assert_eq!(declared, exported());
    assert_eq!(declared.len(), 15);
}

#[test]
fn the_header_is_c_and_cpp() {
    let lab = Lab::new("languages");
    for (compiler, language, standard) in
        [("cc", "c", "-std=gnu11"), ("cc", "c", "-std=gnu17"), ("c++", "c++", "-std=gnu++17")]
    {
        let source = lab.dir().join("empty");
        std::fs::write(&source, "#include <culvert.h>\n#include <culvert.h>\n").expect("a file");
        let mut c = Command::new(compiler);
        c.args(["-x", language, standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"]);
        succeeds(c_with(c, &source));
    }
}

fn c_with(mut c: Command, source: &std::path::Path) -> Command {
    c.arg(root().join("api/include")).arg(source);
    c
}

/// As it is installed: lib/libculvert.so, lib/pkgconfig/culvert.pc, include/culvert.h.
#[test]
fn pkg_config_finds_what_is_installed() {
    let lab = Lab::new("pkg-config");
    let (lib, include) = (lab.dir().join("lib"), lab.dir().join("include"));
    std::fs::create_dir_all(lib.join("pkgconfig")).expect("a directory");
    std::fs::create_dir_all(&include).expect("a directory");
    std::os::unix::fs::symlink(library().canonicalize().expect("the library"), lib.join("libculvert.so"))
        .expect("a link");
    std::fs::copy(root().join("api/culvert.pc"), lib.join("pkgconfig/culvert.pc")).expect("a copy");
    std::fs::copy(root().join("api/include/culvert.h"), include.join("culvert.h")).expect("a copy");
    let mut c = Command::new("pkg-config");
    c.env("PKG_CONFIG_PATH", lib.join("pkgconfig")).args(["--cflags", "--libs", "culvert"]);
    let flags = succeeds(c);
    let mut c = Command::new("cc");
    c.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("c/layout.c")).arg("-o").arg(lab.dir().join("layout"));
    succeeds({
        c.args(flags.split_whitespace());
        c
    });
    let mut program = lab.command(lab.dir().join("layout"), With::Nothing);
    program.env("LD_LIBRARY_PATH", &lib);
    assert_eq!(succeeds(program), "ok\n");
}

#[test]
fn structures_are_laid_out_and_errors_are_as_the_header_says() {
    let lab = Lab::new("layout");
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("c/layout.c");
    for flags in [&[][..], &["-fsanitize=address"][..]] {
        let program = lab.compile(&source, "layout", flags);
        for with in [With::Nothing, With::Preload] {
            assert_eq!(succeeds(lab.command(&program, with)), "ok\n");
        }
    }
}

#[test]
fn a_thread_that_waits_for_a_chunk_can_be_cancelled() {
    let lab = Lab::new("cancel");
    let program = lab.compile(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("c/cancel.c"), "cancel", &[]);
    for with in [With::Nothing, With::Preload] {
        assert_eq!(succeeds(lab.command(&program, with)), "cancelled\n");
    }
}

/// A program that is linked with the library, and not run under culvert, is accelerated as any other.
#[test]
fn the_echo_example_copies_nothing_once_it_is_on_the_ring() {
    for (name, flags) in [("plain", &[][..]), ("asan", &["-fsanitize=address"][..])] {
        let lab = Lab::new(name);
        let program = lab.compile(&example("rpc_echo.c"), "rpc_echo", flags);
        let with = if name == "plain" { With::Nothing } else { With::Preload };
        let mut command = lab.command(&program, with);
        command.arg("server");
        let mut server = Server::start(command);
        for (count, size) in [(300, 64), (100, 5_000), (50, 65_536)] {
            let mut client = lab.command(&program, with);
            client.args(["client", &server.port.to_string(), &count.to_string(), &size.to_string()]);
            let said = succeeds(client);
            let line = server.line();
            let (numbers, _) = line.split_once("in place").expect("its counts");
            let n: Vec<u64> = numbers.split_whitespace().filter_map(|w| w.parse().ok()).collect();
            assert_eq!(n.len(), 4, "{line}");
            assert_eq!(said, format!("{count} messages; path 3\n"));
            // All but the first few messages.
            assert!(n[0] * 10 > n[1] * 7 && n[2] * 10 > n[3] * 7, "{name} {count} {size}: {line}");
        }
    }
}

#[test]
fn the_echo_example_says_so_if_a_client_ends_within_a_message() {
    let lab = Lab::new("half");
    let program = lab.compile(&example("rpc_echo.c"), "rpc_echo", &[]);
    for (sent, says) in [(&[0, 0][..], "half a header\n"), (&[0, 0, 0, 100, 1, 2, 3], "half a message\n")] {
        let said = lab.dir().join("said");
        let mut command = lab.command(&program, With::Preload);
        command.arg("server").stderr(std::fs::File::create(&said).expect("a file"));
        let server = Server::start(command);
        let mut client = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
        client.write_all(sent).expect("bytes sent");
        client.shutdown(Shutdown::Write).expect("an end");
        assert_eq!(server.ends().code(), Some(1));
        assert_eq!(std::fs::read_to_string(&said).expect("what it said"), says);
    }
}

#[test]
fn the_example_that_answers_from_mapped_files_answers_with_them() {
    let lab = Lab::new("http");
    let program = lab.compile(&example("http_files.c"), "http_files", &["-fsanitize=address"]);
    culvert_api_tests::files_are_served(&lab, &lab.command(&program, With::Preload));
}

/// Three processes, one behind the other: what the first one writes the last one reads there.
#[test]
fn the_pipeline_example_forwards_chunks_without_a_copy() {
    for (name, flags) in [("pipeline", &[][..]), ("pipeline-asan", &["-fsanitize=address"][..])] {
        let lab = Lab::new(name);
        let program = lab.compile(&example("pipeline.c"), "pipeline", flags);
        let with = if flags.is_empty() { With::Nothing } else { With::Preload };
        let start = |args: &[&str]| {
            let mut command = lab.command(&program, with);
            command.args(args);
            command
        };
        let sink = Server::start(start(&["sink"]));
        let filter = Server::start(start(&["filter", &sink.port.to_string()]));
        let source = succeeds(start(&["source", &filter.port.to_string(), "3000"]));
        let (filter, sink) = (filter.wait(), sink.wait());
        let numbers = |text: &str| text.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<u64>>();
        let (source, filter, sink) = (numbers(&source), numbers(&filter), numbers(&sink));
        assert_eq!((source[1], filter[0], sink[0]), (3000 << 16, 2000, 2000));
        // All but the first ones: the connections come to rings, and the receivers meet the pool, meanwhile.
        assert!(source[0] * 2 > source[1] && filter[1] * 10 > filter[2] * 8, "{source:?} {filter:?}");
        assert!(sink[1] * 2 > sink[0], "{sink:?}");
    }
}
