//! Taking a program away from an interface if it is still the one there: libbpf-rs has no call that compares.
#![allow(unsafe_code)]

use libbpf_rs::libbpf_sys::{bpf_xdp_attach_opts, bpf_xdp_detach};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes this program away; an error if another is there by now.
pub(crate) fn detach(index: i32, program: BorrowedFd<'_>) -> io::Result<()> {
    let options = bpf_xdp_attach_opts {
        sz: size_of::<bpf_xdp_attach_opts>() as _,
        old_prog_fd: program.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the options are of this frame and say their own size; the descriptor in them is borrowed, so it is open through the call.
    let result = unsafe { bpf_xdp_detach(index, 0, &raw const options) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}
