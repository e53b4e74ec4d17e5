//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::exit;
use crate::recall::KernelArgs;
use crate::settings::{LogLevel, PathChoice, Ring, Spin};
use crate::stat::StatArgs;
use crate::visible::visible;
use crate::workload::WorkloadArgs;

/// What the user asked for.
#[derive(Parser, Debug)]
#[command(
    name = "culvert",
    version,
    about = "Carries TCP between co-located, unmodified programs through shared memory"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a program under culvert
    #[command(
        after_help = "Exit status: the program's own; 125 if culvert failed, 126 if the program cannot be executed \
        (or not under culvert), 127 if it was not found."
    )]
    Run(RunArgs),
    /// Show every process under culvert, its connections, and why those on the kernel are there
    Stat(StatArgs),
    /// Bring the connections of a running process back to the kernel, for good
    #[command(
        after_help = "For example after a packet filter's rule was added that its connections are to obey. Exit \
        status: 0, or 1 if a process is not under culvert or not the caller's."
    )]
    Kernel(KernelArgs),
    /// Say whether this machine, and a program on it, will be accelerated
    #[command(after_help = "Exit status: 0 if it will be accelerated, 1 if not.")]
    Doctor(DoctorArgs),
    /// Run zstackd, which carries connections to other hosts
    #[command(
        disable_help_flag = true,
        after_help = "All arguments are zstackd's: --config FILE, check, --help. Exit status: zstackd's own; 125 if culvert \
        failed, 126 if zstackd cannot be executed, 127 if it was not found."
    )]
    Zstackd(ZstackdArgs),
    /// Give a network card's virtual functions and flows to whom they are for; planned, checked, and undone
    #[command(
        after_help = "Exit status: 0, or 1 if it cannot be done, something is not as wanted, or not all could be undone."
    )]
    Steer(SteerArgs),
    /// Measure the kernel's TCP beside culvert
    Bench(BenchArgs),
    /// One end of a benchmark
    #[command(hide = true)]
    Workload(WorkloadArgs),
}

/// `culvert run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Path for the program's connections (CULVERT_PATH)
    #[arg(long, value_name = "auto|zstack|shm|kernel")]
    pub path: Option<PathChoice>,
    /// How long to spin before sleeping (CULVERT_SPIN)
    #[arg(long, value_name = "auto|off|MICROSECONDS")]
    pub spin: Option<Spin>,
    /// What to log (CULVERT_LOG)
    #[arg(long, value_name = "off|error|warn|info|debug|trace")]
    pub log: Option<LogLevel>,
    /// Where to log; default standard error (CULVERT_LOG_FILE)
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Bytes of one direction's ring (CULVERT_RING)
    #[arg(long, value_name = "BYTES")]
    pub ring: Option<Ring>,
    /// libculvert.so to use instead of the one found beside this command
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// `culvert doctor`.
#[derive(Args, Debug, Default)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// libculvert.so to use instead of the one found beside this command
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// A program to look at
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// `culvert zstackd`.
#[derive(Args, Debug)]
pub struct ZstackdArgs {
    /// Arguments of zstackd
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pub args: Vec<OsString>,
}

/// Where the journal of `culvert steer` is.
pub const STEER_STATE: &str = "/run/culvert/steer";

/// `culvert steer`.
#[derive(Args, Debug)]
pub struct SteerArgs {
    /// What to do
    #[command(subcommand)]
    pub action: SteerAction,
    /// Where the journal is, from which everything can be undone
    #[arg(long, value_name = "DIRECTORY", env = "CULVERT_STEER", default_value = STEER_STATE, global = true)]
    pub state: PathBuf,
    /// A machine that is imagined in a directory, instead of this one
    #[arg(long, value_name = "DIRECTORY", hide = true, global = true)]
    pub imagined: Option<PathBuf>,
}

/// What `culvert steer` does.
#[derive(Subcommand, Clone, Debug)]
pub enum SteerAction {
    /// Show the steps that lead from what is there to what the file wants, in words and as commands; it needs no rights
    Plan {
        /// What is wanted (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Do these steps: each is noted before, and read back
    Apply {
        /// What is wanted (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Name everything that is not as the file wants it
    Verify {
        /// What is wanted (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Start a middlebox that holds the rules of a redirect with `held = true`: they go with the last of its processes
    Hold {
        /// What is wanted (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Whose: the control group or the interface that the redirect names
        #[arg(value_name = "WHOSE")]
        whose: String,
        /// The middlebox and its arguments
        #[arg(value_name = "COMMAND", required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Restore what was found, also after `apply` or `undo` was killed
    Undo,
    /// Show what has been done and not undone
    Status,
}

/// `culvert bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Rows to measure; all of them if none is named (see --list)
    #[arg(value_name = "ROW")]
    pub rows: Vec<String>,
    /// Name the rows and stop
    #[arg(long)]
    pub list: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Measurements of each side per row; the table shows their medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Length of one measurement, seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// Exit with 1 if a floor was not met
    #[arg(long)]
    pub check: bool,
    /// libculvert.so to use instead of the one found beside this command
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
}

/// Parses `argv`. On error, or for `--help`, prints what there is to say and returns the exit code.
pub fn parse(argv: Vec<OsString>) -> Result<Command, u8> {
    // Only those that become a program must keep 1 and 2 free for its own exit status.
    let becomes = argv.get(1).is_some_and(|a| a == "run" || a == "zstackd");
    let usage = if becomes { exit::FAILED } else { exit::USAGE };
    let said: Vec<String> = argv.iter().map(|a| visible(&a.to_string_lossy())).collect();
    Cli::try_parse_from(argv).map(|cli| cli.command).map_err(|e| {
        // What was typed is in what is said.
        let shown = Cli::try_parse_from(said).err().filter(|shown| shown.kind() == e.kind());
        // Nothing is left to be done if the terminal is gone.
        match shown {
            Some(shown) => drop(shown.print()),
            None => eprintln!("culvert: an argument is not what it must be; try '--help'"),
        }
        if e.use_stderr() { usage } else { exit::OK }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<RunArgs, u8> {
        let argv = ["culvert", "run"].iter().chain(words).map(OsString::from).collect();
        match parse(argv)? {
            Command::Run(a) => Ok(a),
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn the_programs_own_options_are_left_alone() {
        for words in [
            &["--path", "shm", "--", "prog", "--path", "x", "--help"][..],
            &["--path", "shm", "prog", "--path", "x", "--help"],
        ] {
            let a = run(words).unwrap();
            assert_eq!(a.path, Some(PathChoice::Shm));
            assert_eq!(a.program, ["prog", "--path", "x", "--help"]);
        }
    }

    #[test]
    fn all_arguments_of_zstackd_are_its_own() {
        for words in [&["--config", "x.toml", "check"][..], &["--help"], &["-V", "--", "x"], &[]] {
            let argv = ["culvert", "zstackd"].iter().chain(words).map(OsString::from).collect();
            let Ok(Command::Zstackd(a)) = parse(argv) else { panic!("{words:?}: not parsed") };
            assert_eq!(a.args, words);
        }
    }

    #[test]
    fn a_second_double_dash_belongs_to_the_program() {
        assert_eq!(run(&["--", "prog", "--", "x"]).unwrap().program, ["prog", "--", "x"]);
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(run(&["--spin", "25", "p"]).unwrap().spin, Some(Spin::Microseconds(25)));
        for bad in [
            ["--spin", "-1"],
            ["--spin", "soon"],
            ["--path", "quick"],
            ["--log", "loud"],
            ["--ring", "big"],
            ["--ring", "0"],
        ] {
            assert_eq!(run(&[bad[0], bad[1], "p"]).unwrap_err(), exit::FAILED, "{bad:?}");
        }
    }

    #[test]
    fn usage_errors_have_the_documented_codes() {
        let parse = |words: &[&str]| parse(words.iter().map(OsString::from).collect()).map(|_| ()).unwrap_err();
        assert_eq!(parse(&["culvert", "run"]), exit::FAILED);
        assert_eq!(parse(&["culvert", "stat", "--nonsense"]), exit::USAGE);
        assert_eq!(parse(&["culvert", "bench", "--rounds", "0"]), exit::USAGE);
        assert_eq!(parse(&["culvert", "--version"]), exit::OK);
    }

    #[test]
    fn non_utf8_arguments_pass() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        let argv = vec!["culvert".into(), "run".into(), "--".into(), "p".into(), odd.clone()];
        let Ok(Command::Run(a)) = parse(argv) else { panic!("not parsed") };
        assert_eq!(a.program[1], odd);
    }
}
