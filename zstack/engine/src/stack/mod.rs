//! Many connections, one port: the face of the engine.

mod config;

pub use config::{
    Adopt, AdoptError, Config, ConfigError, Connect, ConnectError, Info, Limits, Listen, ListenError, Turn,
};

use serde::{Deserialize, Serialize};

/// A connection's name in its stack. The generation tells it from others that had its index before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ConnId {
    /// Dense: connections that are open have the lowest indexes that were free.
    pub index: u32,
    /// How many connections had the index before.
    pub generation: u32,
}

/// A listener's name in its stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ListenerId(pub u32);
