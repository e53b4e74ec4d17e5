//! A virtual machine with two ports of a card with SR-IOV (QEMU's igb) on one wire. Its disk is this machine's, read only, under a
//! layer in memory: every program is there, and nothing that is written stays.

use super::packages::{self, said};
use crate::{culvert, target, with_dpdk};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the kernel needs before it has its disk, in this order.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "fs/netfs/netfs",
    "fs/fscache/fscache",
    "net/9p/9pnet",
    "net/9p/9pnet_virtio",
    "fs/9p/9p",
    "fs/overlayfs/overlay",
];

/// What the machine writes to its exit port, and what QEMU makes of it: twice that and one.
pub const PASSED: u8 = 0x20;
const STATUS: i32 = PASSED as i32 * 2 + 1;
const FAILED: i32 = STATUS + 2;
/// That port.
pub const EXIT: u64 = 0xf4;

/// One machine, from its start to its end.
pub struct Machine {
    /// Whether it has an IOMMU.
    pub iommu: bool,
    /// What it runs: arguments of this program.
    pub runs: Vec<String>,
    /// How long at most.
    pub limit: Duration,
}

impl Machine {
    /// Starts it; its text goes to `line`. Whether it has said that all went well.
    pub fn run(&self, line: impl FnMut(&str)) -> Result<bool, String> {
        let initramfs = self.initramfs()?;
        let root = packages::root();
        let version = packages::kernel()?;
        let mut c = Command::new(packages::program("qemu-system-x86_64")?);
        // QEMU's libraries lie beside it.
        let libraries =
            ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|at| root.join(at).display().to_string());
        c.env("LD_LIBRARY_PATH", libraries.join(":"));
        c.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            c.arg("-L").arg(root.join(firmware));
        }
        // Without KVM: a machine that is itself one often has none, and a lab is to be the same everywhere.
        c.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        c.args([
            "-machine",
            "q35,smm=off,vmport=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "Nehalem",
            "-smp",
            "2",
            "-m",
            "640",
        ]);
        if self.iommu {
            c.args(["-device", "intel-iommu"]);
        }
        for port in 1..=2 {
            c.args(["-netdev", &format!("hubport,id=wire{port},hubid=0")]);
            c.args(["-device", &format!("pcie-root-port,id=slot{port},chassis={port},bus=pcie.0,addr={port}.0")]);
            c.args(["-device", &format!("igb,netdev=wire{port},bus=slot{port},mac=52:54:00:00:00:0{port}")]);
        }
        c.args(["-fsdev", "local,id=disk,path=/,security_model=none,readonly=on,multidevs=remap"]);
        c.args(["-device", "virtio-9p-pci,fsdev=disk,mount_tag=disk"]);
        c.args(["-device", &format!("isa-debug-exit,iobase={EXIT:#x},iosize=1")]);
        c.arg("-kernel").arg(root.join("boot").join(format!("vmlinuz-{version}"))).arg("-initrd").arg(initramfs);
        let iommu = if self.iommu { "intel_iommu=on " } else { "" };
        c.args([
            "-append",
            &format!("console=ttyS0 quiet {iommu}mitigations=off nokaslr panic=-1 oops=panic {}", clock()),
        ]);
        // It says there that the wire leads nowhere else, and why it cannot start.
        let log = packages::directory().join("qemu.log");
        c.stderr(fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?);
        match crate::step::status_of(&mut c, self.limit, line)?.code() {
            Some(STATUS) => Ok(true),
            Some(FAILED) => Ok(false),
            _ => Err(format!("the machine ended by itself: {}", fs::read_to_string(&log).unwrap_or_default())),
        }
    }

    /// What the kernel starts from: busybox, modules, and a script.
    fn initramfs(&self) -> Result<PathBuf, String> {
        let at = packages::directory().join("initramfs");
        let _ = fs::remove_dir_all(&at);
        for made in ["bin", "dev", "lower", "memory", "root", "modules"] {
            fs::create_dir_all(at.join(made)).map_err(|e| e.to_string())?;
        }
        let busybox = packages::program("busybox")?;
        let copy =
            |from: PathBuf, to: &str| fs::copy(&from, at.join(to)).map_err(|e| format!("{}: {e}", from.display()));
        copy(busybox.clone(), "bin/busybox")?;
        let modules = packages::root().join("lib/modules").join(packages::kernel()?).join("kernel");
        let mut script =
            "#!/bin/busybox sh\nset -e\nexport PATH=/bin\n/bin/busybox --install -s /bin\nmount -t devtmpfs dev /dev\n"
                .to_owned();
        for module in MODULES {
            let file = module.rsplit('/').next().unwrap_or(module);
            copy(modules.join(format!("{module}.ko")), &format!("modules/{file}.ko"))?;
            script += &format!("insmod /modules/{file}.ko\n");
        }
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        script += &format!(
            "mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 disk /lower\n\
             mount -t tmpfs memory /memory\nmkdir /memory/upper /memory/work\n\
             mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /root\n\
             export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin CARGO_TARGET_DIR={}\n\
             export CULVERT_BIN={} {}={}\nmount -t devtmpfs dev /root/dev\nexec switch_root /root {} {}\n",
            target().display(),
            culvert().display(),
            with_dpdk::ZSTACK.0,
            with_dpdk::zstack().display(),
            own.display(),
            self.runs.join(" ")
        );
        fs::write(at.join("init"), script).map_err(|e| e.to_string())?;
        said(Command::new("chmod").arg("755").arg(at.join("init")))?;
        let names = said(Command::new("find").arg(".").current_dir(&at))?;
        let archive = packages::directory().join("initramfs.cpio");
        let file = fs::File::create(&archive).map_err(|e| e.to_string())?;
        let mut cpio = Command::new(busybox);
        cpio.args(["cpio", "-o", "-H", "newc"])
            .current_dir(&at)
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(Stdio::null());
        let mut cpio = cpio.spawn().map_err(|e| format!("busybox cpio: {e}"))?;
        let written = cpio.stdin.take().map(|mut input| input.write_all(names.as_bytes()));
        let status = cpio.wait().map_err(|e| e.to_string())?;
        match (written, status.success()) {
            (Some(Ok(())), true) => Ok(archive),
            _ => Err("busybox cpio has made no archive".into()),
        }
    }
}

/// The emulated clock is this machine's time-stamp counter; found out by the kernel in there it would be off, as busy as it is here.
fn clock() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let rate = info.lines().find(|l| l.starts_with("bogomips")).and_then(|l| l.split(": ").nth(1));
    let rate = rate.and_then(|r| r.trim().parse::<f64>().ok());
    rate.map_or(String::new(), |rate| format!("tsc=reliable tsc_early_khz={:.0}", rate * 500.0))
}
