//! What the lab runs: QEMU, a kernel and busybox out of Debian's packages, unpacked into target/lab. Nothing is installed, and apt-get's own
//! lists and settings are not touched.

use crate::target;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is run by its name, and what brings it.
const PROGRAMS: [&str; 4] = ["qemu-system-x86", "busybox-static", "kmod", "seabios"];
/// QEMU's igb is in version 8 and later; this Debian has an older one, and a newer one apart.
const OLD: &str = "bookworm";

/// Where all of the lab is.
pub fn directory() -> PathBuf {
    target().join("lab")
}

/// Debian's packages, unpacked.
pub fn root() -> PathBuf {
    directory().join("root")
}

/// A program of theirs.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let places = ["usr/bin", "bin", "usr/sbin", "sbin"].map(|at| root().join(at).join(name));
    places.into_iter().find(|p| p.exists()).ok_or_else(|| format!("none of the packages has a program {name}"))
}

/// The kernel's version, as its directories are called.
pub fn kernel() -> Result<String, String> {
    let at = root().join("lib/modules");
    let names = fs::read_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
    let name = names.flatten().next().map(|n| n.file_name().to_string_lossy().into_owned());
    name.ok_or_else(|| format!("{}: there is no kernel", at.display()))
}

/// Gets what is missing.
pub fn ready() -> Result<(), String> {
    let done = directory().join("unpacked");
    if done.exists() {
        return Ok(());
    }
    println!(
        "== the lab takes 100 MB of Debian's packages (QEMU, a kernel, busybox, kmod): unpacked into {}, not installed",
        root().display()
    );
    let apt = Apt::new()?;
    apt.run(&["update", "-q"])?;
    let newer = format!("{OLD}-backports");
    let mut get = vec!["install", "-y", "-q", "--download-only", "--reinstall", "--no-install-recommends"];
    get.extend(apt.codename.eq(OLD).then_some(["-t", &newer]).into_iter().flatten());
    get.extend(PROGRAMS);
    apt.run(&get)?;
    // The kernel is the release's own; its image depends on what would install it.
    let of = format!("linux-image-amd64/{}", apt.codename);
    let image = apt.output("apt-cache", &["show", &of])?;
    let image = image.lines().find_map(|l| l.strip_prefix("Depends: "));
    let image = image.and_then(|l| l.split([' ', ',']).next()).ok_or("linux-image-amd64 names no kernel")?;
    apt.run(&["download", "-q", image])?;
    for package in fs::read_dir(apt.archives()).map_err(|e| e.to_string())?.flatten() {
        let path = package.path();
        if path.extension().is_some_and(|e| e == "deb") {
            said(Command::new("dpkg").arg("-x").arg(&path).arg(root()))?;
        }
    }
    let version = kernel()?;
    said(Command::new(program("depmod")?).arg("-b").arg(root()).arg(&version))?;
    fs::write(done, version).map_err(|e| e.to_string())?;
    let _ = fs::remove_dir_all(apt.archives());
    Ok(())
}

/// Runs a command; what it has written, or why it failed.
pub fn said(command: &mut Command) -> Result<String, String> {
    let shown = crate::step::show(command);
    let out = command.stdin(Stdio::null()).output().map_err(|e| format!("{shown}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match out.status.success() {
        true => Ok(text(&out.stdout)),
        false => Err(format!("{shown}: {}{}", text(&out.stdout), text(&out.stderr))),
    }
}

/// apt-get with lists, sources and archives of its own.
struct Apt {
    codename: String,
}

impl Apt {
    fn new() -> Result<Apt, String> {
        let release = fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
        let value = |key: &str| release.lines().find_map(|l| l.strip_prefix(key)).map(str::to_owned);
        let codename = value("VERSION_CODENAME=").filter(|_| value("ID=").is_some_and(|id| id == "debian"));
        let apt =
            Apt { codename: codename.ok_or("the lab takes its programs from Debian, and this is another system")? };
        for made in [apt.archives().join("partial"), apt.lists().join("partial"), root()] {
            fs::create_dir_all(&made).map_err(|e| format!("{}: {e}", made.display()))?;
        }
        let names = [apt.codename.clone(), format!("{}-backports", apt.codename)];
        let line = |name: &String| {
            format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {name} main\n"
            )
        };
        fs::write(apt.sources(), names.iter().map(line).collect::<String>()).map_err(|e| e.to_string())?;
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        directory().join("sources.list")
    }

    fn lists(&self) -> PathBuf {
        directory().join("lists")
    }

    fn archives(&self) -> PathBuf {
        directory().join("archives")
    }

    fn command(&self, program: &str) -> Command {
        let mut c = Command::new(program);
        let set = |key: &str, at: &Path| format!("-o{key}={}", at.display());
        c.args([
            set("Dir::Etc::SourceList", &self.sources()),
            set("Dir::Etc::SourceParts", Path::new("-")),
            set("Dir::State::Lists", &self.lists()),
            set("Dir::Cache", &directory()),
            set("Dir::Cache::Archives", &self.archives()),
            // It changes nothing that others could be changing; and it needs no other user's rights to this directory.
            "-oDebug::NoLocking=1".into(),
            "-oAPT::Sandbox::User=root".into(),
        ]);
        c.env("DEBIAN_FRONTEND", "noninteractive").current_dir(self.archives());
        c
    }

    fn run(&self, args: &[&str]) -> Result<(), String> {
        said(self.command("apt-get").args(args)).map(drop)
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String, String> {
        said(self.command(program).args(args))
    }
}
