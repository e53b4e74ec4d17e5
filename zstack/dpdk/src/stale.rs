//! Sockets by which two processes share memory, when the one that listened was killed: their names stay, and its driver takes none that
//! is there.

use crate::driver::Driver;
use crate::spec::Spec;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Removes the socket's name that this device is to listen at, if nobody listens there any more.
pub(crate) fn remove(spec: &Spec, driver: Driver) {
    let path = match driver {
        Driver::Memif if !connects(spec) && spec.argument("socket-abstract") == Some("no") => spec.argument("socket"),
        Driver::Vhost if spec.argument("client") != Some("1") => spec.argument("iface"),
        _ => None,
    };
    if let Some(path) = path.map(Path::new)
        && is_left(path)
    {
        // Fails if another process was faster, or may not: the driver says so.
        let _ = fs::remove_file(path);
    }
}

/// Whether this net_memif is the end that connects.
pub(crate) fn connects(spec: &Spec) -> bool {
    matches!(spec.argument("role"), Some("client" | "slave"))
}

/// Whether a socket has the name, and nobody listens. Where one of another kind listens, connecting fails with another error.
fn is_left(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    #[test]
    fn only_a_socket_without_a_listener_goes() {
        let place = std::env::temp_dir().join(format!("zstack-stale-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let path = place.join("socket");
        let name = path.display();
        let specs =
            [format!("dpdk:net_memif0,socket={name},socket-abstract=no"), format!("dpdk:net_vhost0,iface={name}")];
        let there_after = |text: &str| {
            let spec: Spec = text.parse().unwrap();
            remove(&spec, spec.driver());
            path.exists()
        };
        for text in &specs {
            let listener = UnixListener::bind(&path).unwrap();
            assert!(there_after(text));
            drop(listener);
            assert!(there_after(&format!("{text},role=client,client=1")), "it does not listen");
            assert!(there_after(&format!("dpdk:net_memif0,socket={name}")), "that is a name of another kind");
            assert!(!there_after(text));
            // Somebody listens by another protocol.
            let other = UnixDatagram::bind(&path).unwrap();
            assert!(there_after(text));
            drop(other);
            fs::remove_file(&path).unwrap();
            fs::write(&path, "a file").unwrap();
            assert!(there_after(text));
            fs::remove_file(&path).unwrap();
        }
        fs::remove_dir_all(&place).unwrap();
    }
}
