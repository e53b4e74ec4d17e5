//! As much of JSON as `culvert stat --json` and `iperf3 -J` need: reading.

use std::collections::BTreeMap;

/// A JSON value.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A string.
    Text(String),
    /// `[...]`
    List(Vec<Json>),
    /// `{...}`
    Map(BTreeMap<String, Json>),
}

impl Json {
    /// Parses one value that fills `text` but for white space.
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut p = Parser { bytes: text.as_bytes(), at: 0 };
        let value = p.value()?;
        p.space();
        if p.at == p.bytes.len() { Ok(value) } else { Err(format!("text after the value at byte {}", p.at)) }
    }

    /// The member `key`, or `Null`.
    pub fn get(&self, key: &str) -> &Json {
        match self {
            Json::Map(m) => m.get(key).unwrap_or(&Json::Null),
            _ => &Json::Null,
        }
    }

    /// The elements of a list; none of anything else.
    pub fn list(&self) -> &[Json] {
        match self {
            Json::List(l) => l,
            _ => &[],
        }
    }

    /// The string, or "".
    pub fn text(&self) -> &str {
        match self {
            Json::Text(t) => t,
            _ => "",
        }
    }

    /// The number, or 0.
    pub fn number(&self) -> f64 {
        match self {
            Json::Number(n) => *n,
            _ => 0.0,
        }
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, literal: &str) -> bool {
        self.space();
        let found = self.bytes[self.at..].starts_with(literal.as_bytes());
        self.at += if found { literal.len() } else { 0 };
        found
    }

    fn value(&mut self) -> Result<Json, String> {
        self.space();
        match self.bytes.get(self.at) {
            Some(b'{') => self.map(),
            Some(b'[') => self.items(),
            Some(b'"') => self.string().map(Json::Text),
            _ if self.take("null") => Ok(Json::Null),
            _ if self.take("true") => Ok(Json::Bool(true)),
            _ if self.take("false") => Ok(Json::Bool(false)),
            _ => self.number(),
        }
    }

    fn map(&mut self) -> Result<Json, String> {
        self.take("{");
        let mut m = BTreeMap::new();
        if self.take("}") {
            return Ok(Json::Map(m));
        }
        loop {
            self.space();
            let key = self.string()?;
            if !self.take(":") {
                return Err(format!("':' missing at byte {}", self.at));
            }
            m.insert(key, self.value()?);
            if self.take("}") {
                return Ok(Json::Map(m));
            }
            if !self.take(",") {
                return Err(format!("',' missing at byte {}", self.at));
            }
        }
    }

    fn items(&mut self) -> Result<Json, String> {
        self.take("[");
        let mut l = Vec::new();
        if self.take("]") {
            return Ok(Json::List(l));
        }
        loop {
            l.push(self.value()?);
            if self.take("]") {
                return Ok(Json::List(l));
            }
            if !self.take(",") {
                return Err(format!("',' missing at byte {}", self.at));
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        if !self.take("\"") {
            return Err(format!("a string is missing at byte {}", self.at));
        }
        let mut out = Vec::new();
        loop {
            let b = *self.bytes.get(self.at).ok_or("unterminated string")?;
            self.at += 1;
            match b {
                b'"' => return String::from_utf8(out).map_err(|e| e.to_string()),
                b'\\' => {
                    let e = *self.bytes.get(self.at).ok_or("unterminated escape")?;
                    self.at += 1;
                    let c = match e {
                        b'n' => '\n',
                        b't' => '\t',
                        b'r' => '\r',
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'u' => self.unicode()?,
                        other => char::from(other),
                    };
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                other => out.push(other),
            }
        }
    }

    fn unicode(&mut self) -> Result<char, String> {
        let hex = self.bytes.get(self.at..self.at + 4).ok_or("short \\u escape")?;
        self.at += 4;
        let code = std::str::from_utf8(hex).ok().and_then(|h| u32::from_str_radix(h, 16).ok());
        // Surrogate pairs do not occur in what is read here; each half becomes a replacement character.
        Ok(code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn number(&mut self) -> Result<Json, String> {
        let begin = self.at;
        while self.bytes.get(self.at).is_some_and(|b| b"+-.eE0123456789".contains(b)) {
            self.at += 1;
        }
        let text = std::str::from_utf8(&self.bytes[begin..self.at]).map_err(|e| e.to_string())?;
        text.parse().map(Json::Number).map_err(|_| format!("no value at byte {begin}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_tools_write() {
        let j = Json::parse(r#" {"a": [1, -2.5e1, true, null], "s": "x\"\u0041\n", "e": {}, "l": []} "#).unwrap();
        assert_eq!(j.get("a").list().len(), 4);
        assert_eq!(j.get("a").list()[1].number(), -25.0);
        assert_eq!(j.get("s").text(), "x\"A\n");
        assert_eq!(*j.get("none"), Json::Null);
        for wrong in ["", "{", "[1,]", "{\"a\" 1}", "\"x", "1 2"] {
            assert!(Json::parse(wrong).is_err(), "{wrong}");
        }
    }
}
