//! What a tool knows of its connections, by their names.

use crate::transport::Conn;

/// One value for each connection; a look-up is an index.
#[derive(Debug)]
pub struct Table<T> {
    entries: Vec<Option<(u32, T)>>,
    len: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { entries: Vec::new(), len: 0 }
    }
}

impl<T> Table<T> {
    pub fn insert(&mut self, conn: Conn, value: T) {
        let index = conn.index as usize;
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, || None);
        }
        if self.entries[index].replace((conn.generation, value)).is_none() {
            self.len += 1;
        }
    }

    pub fn get_mut(&mut self, conn: Conn) -> Option<&mut T> {
        let entry = self.entries.get_mut(conn.index as usize)?.as_mut();
        entry.filter(|(generation, _)| *generation == conn.generation).map(|(_, value)| value)
    }

    pub fn remove(&mut self, conn: Conn) -> Option<T> {
        self.get_mut(conn)?;
        self.len -= 1;
        self.entries[conn.index as usize].take().map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn iter(&self) -> impl Iterator<Item = (Conn, &T)> {
        let named = self.entries.iter().enumerate();
        named.filter_map(|(index, entry)| {
            entry.as_ref().map(|(generation, value)| (Conn { index: index as u32, generation: *generation }, value))
        })
    }
}
