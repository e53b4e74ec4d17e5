//! Programs that are attached to control groups without a link: they stay when the process that has attached them ends.
// Unsafe here: five calls of libbpf that libbpf-rs does not have, and two options that no crate has.
#![allow(unsafe_code)]

use libbpf_rs::libbpf_sys::{
    BPF_F_ALLOW_MULTI, BPF_F_QUERY_EFFECTIVE, bpf_link_create, bpf_prog_attach, bpf_prog_detach2,
    bpf_prog_get_info_by_fd, bpf_prog_info, bpf_prog_query,
};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::ptr::{null, null_mut};

/// Where in a group a program is attached (bpf_attach_type).
pub(crate) type Kind = u32;

/// More programs of one kind no group has.
const MOST: usize = 64;

fn result(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::from_raw_os_error(-returned)) } else { Ok(()) }
}

/// Attaches a program beside those that are there.
pub(crate) fn attach(program: BorrowedFd<'_>, group: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    // SAFETY: it takes numbers only.
    result(unsafe { bpf_prog_attach(program.as_raw_fd(), group.as_raw_fd(), kind, BPF_F_ALLOW_MULTI) })
}

/// Attaches a program beside those that are there, for as long as somebody has the descriptor.
pub(crate) fn hold(program: BorrowedFd<'_>, group: BorrowedFd<'_>, kind: Kind) -> io::Result<OwnedFd> {
    // SAFETY: it takes numbers only; libbpf leaves out what is null.
    let fd = unsafe { bpf_link_create(program.as_raw_fd(), group.as_raw_fd(), kind, null()) };
    result(fd)?;
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a program away.
pub(crate) fn detach(program: BorrowedFd<'_>, group: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    // SAFETY: it takes numbers only.
    result(unsafe { bpf_prog_detach2(program.as_raw_fd(), group.as_raw_fd(), kind) })
}

/// The numbers of a group's programs; `effective`: those of the groups around it, too.
pub(crate) fn attached(group: BorrowedFd<'_>, kind: Kind, effective: bool) -> io::Result<Vec<u32>> {
    let mut ids = [0; MOST];
    let mut count = MOST as u32;
    let flags = if effective { BPF_F_QUERY_EFFECTIVE } else { 0 };
    // SAFETY: at most `count` numbers are written to `ids`, which has room for so many; libbpf leaves out what is null.
    result(unsafe { bpf_prog_query(group.as_raw_fd(), kind, flags, null_mut(), ids.as_mut_ptr(), &mut count) })?;
    Ok(ids[..(count as usize).min(MOST)].to_vec())
}

/// The number of the caller's network namespace, which no other one ever has.
pub(crate) fn network() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = UnixDatagram::unbound()?;
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: `cookie` has room for `len` bytes.
    let r = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if r == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Whether connections may have addresses that are not this host's.
pub(crate) fn transparent(socket: impl AsFd, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::IPPROTO_IP, libc::IP_TRANSPARENT) };
    let (yes, len) = (1_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: `len` bytes are read from `yes`.
    let r = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const yes).cast(), len) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A program's name, and the numbers of its maps.
pub(crate) fn information(program: &OwnedFd) -> io::Result<(String, Vec<u32>)> {
    let mut maps = vec![0_u32; MOST];
    let mut info = bpf_prog_info { nr_map_ids: MOST as u32, map_ids: maps.as_mut_ptr() as u64, ..Default::default() };
    let mut size = size_of::<bpf_prog_info>() as u32;
    // SAFETY: `size` bytes are written to `info`, and at most so many numbers as it says to `maps`, which has room for them.
    result(unsafe { bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut size) })?;
    maps.truncate(info.nr_map_ids as usize);
    let name = info.name.map(|c| c as u8);
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
    Ok((name.unwrap_or_default(), maps))
}
