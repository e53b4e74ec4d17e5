//! The parsers of bytes that others wrote, for the fuzzer in `tests/fuzz`. Each panics where what it read contradicts the
//! bytes.

use crate::{Tuple, diag, intent, message, registry, route, serving};

/// A datagram in the mailbox. What is accepted is exactly what [`message::Message::encode`] gives.
pub fn message(data: &[u8]) {
    if let Ok(m) = message::Message::decode(data) {
        assert!(m.encode() == data, "accepted, but not what encode gives");
    }
}

/// Entries of a registry file, the first bytes of `data`, if there are enough; and what somebody who serves says of itself.
pub fn registry(data: &[u8]) {
    if let Some(bytes) = data.first_chunk()
        && let Some((cookie, kind)) = intent::decode(bytes)
    {
        assert!(intent::encode(cookie, kind) == *bytes, "an intent that was read cannot be written");
    }
    let served = serving::Served::read(0, data);
    assert!(served.control().is_none_or(|name| name.bytes().all(|b| b.is_ascii_graphic())));
    assert!(served.serves().all(|(address, bits)| bits <= if address.is_ipv4() { 32 } else { 128 }));
    if let Some(bytes) = data.first_chunk()
        && let Some(entry) = registry::decode(bytes)
    {
        assert!(registry::decode(&registry::encode(&entry)).is_some(), "an entry that was read cannot be written");
    }
}

/// The kernel's answers to a question about a connection, and to one about a route.
pub fn diag(data: &[u8]) {
    let tuple = Tuple { src: [1; 16], dst: [2; 16], sport: 3, dport: 4, scope: 0 };
    let _ = diag::parse(data, &tuple, diag::Wanted::Connection, 1);
    let _ = diag::parse(data, &tuple, diag::Wanted::Program, 1);
    let _ = diag::parse(data, &tuple, diag::Wanted::Listener, 1);
    let _ = route::parse(data, 1);
}
