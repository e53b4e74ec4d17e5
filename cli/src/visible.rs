//! Text of others for the terminal: arguments, paths, names and settings may hold anything.

/// `text` without what a terminal obeys: control characters (C0, DEL, C1), and the characters that end a line or turn its
/// direction, become question marks.
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if obeyed(c) { '?' } else { c }).collect()
}

fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile = "a\nb\tc\x1b[2J\x07\x7f\u{9b}31m\u{202e}txt\u{2028}\u{2066}é日";
        assert_eq!(visible(hostile), "a?b?c?[2J???31m?txt??é日");
    }
}
