//! How a segment is written in a script, be it a trace or packetdrill's: `P. 1:1001(1000) ack 1 win 257 <mss 1460,nop,wscale 7>`.
//! The scripts have each their own words beside it.

use crate::packet::{Opt, flag};

/// A timestamp that may be anything: `.`.
pub const ANY: u32 = u32::MAX;

/// Parts a segment into what stands outside of `<` and `>`, and the list of options between them, if there is one.
///
/// # Errors
/// The list has no end.
pub fn parts(text: &str) -> Result<(String, Option<&str>), String> {
    let Some(begin) = text.find('<') else { return Ok((text.to_owned(), None)) };
    let end = text.rfind('>').filter(|end| *end > begin).ok_or("options without an end")?;
    Ok((format!("{} {}", &text[..begin], &text[end + 1..]), Some(text[begin + 1..end].trim())))
}

/// Control bits: a letter each, `.` for ACK, `-` for none.
///
/// # Errors
/// The letter that is none.
pub fn bits(text: &str) -> Result<u8, String> {
    text.chars().try_fold(0, |bits, c| {
        Ok(bits
            | match c {
                'F' => flag::FIN,
                'S' => flag::SYN,
                'R' => flag::RST,
                'P' => flag::PSH,
                '.' => flag::ACK,
                'U' => flag::URG,
                'E' => flag::ECE,
                'W' => flag::CWR,
                '-' => 0,
                c => return Err(format!("no control bit {c:?}")),
            })
    })
}

/// `FIRST:LAST(LEN)`: the first number, and how many there are.
///
/// # Errors
/// It is not of that form, or the numbers contradict each other.
pub fn range(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.trim_end_matches(')').split_once('(').and_then(|(ends, len)| {
        let (first, last) = ends.split_once(':')?;
        Some((first.parse::<u32>().ok()?, last.parse::<u32>().ok()?, len.parse::<u32>().ok()?))
    });
    match numbers {
        Some((first, last, len)) if first.wrapping_add(len) == last => Ok((first, len)),
        _ => Err(format!("{text:?} is not as 1:1001(1000)")),
    }
}

/// A list of options. `other` knows those that only one of the languages has, by their words.
///
/// # Errors
/// An option that is none, or a number that is none.
pub fn options(text: &str, mut other: impl FnMut(&[&str]) -> Option<Opt>) -> Result<Vec<Opt>, String> {
    let number = |n: &str| n.parse::<u32>().map_err(|_| format!("{n:?} is no number"));
    let stamp = |t: &str| if t == "." { Ok(ANY) } else { number(t) };
    let block = |block: &&str| {
        let (left, right) = block.split_once(':').ok_or_else(|| format!("{block:?} is no block"))?;
        Ok::<_, String>((number(left)?, number(right)?))
    };
    let mut all = Vec::new();
    for option in text.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        let words: Vec<&str> = option.split_whitespace().collect();
        all.push(match words.as_slice() {
            ["nop"] => Opt::Nop,
            ["eol"] => Opt::End,
            ["mss", n] => Opt::Mss(number(n)? as u16),
            ["wscale", n] => Opt::Scale(number(n)? as u8),
            ["sackOK"] => Opt::SackOk,
            ["TS", "val", value, "ecr", echo] => Opt::Ts(stamp(value)?, stamp(echo)?),
            ["sack", blocks @ ..] if !blocks.is_empty() => {
                Opt::Sack(blocks.iter().map(block).collect::<Result<Vec<_>, _>>()?)
            }
            words => other(words).ok_or_else(|| format!("no option {option:?}"))?,
        });
    }
    Ok(all)
}

/// Seconds, `.05` as well as `0.05`, in microseconds.
pub fn micros(text: &str) -> Option<u64> {
    let seconds = if text.starts_with('.') { format!("0{text}").parse::<f64>() } else { text.parse() };
    seconds.ok().filter(|s| *s >= 0.0).map(|s| (s * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_read() {
        let (body, list) = parts("P. 1:3(2) ack 9 <mss 5,nop,TS val . ecr 2,sack 1:2 3:4,odd 7> win 3").unwrap();
        assert_eq!(body.split_whitespace().collect::<Vec<_>>(), ["P.", "1:3(2)", "ack", "9", "win", "3"]);
        let odd = |words: &[&str]| (words == ["odd", "7"]).then(|| Opt::Other(7, vec![]));
        assert_eq!(
            options(list.unwrap(), odd).unwrap(),
            [Opt::Mss(5), Opt::Nop, Opt::Ts(ANY, 2), Opt::Sack(vec![(1, 2), (3, 4)]), Opt::Other(7, vec![])]
        );
        assert_eq!((bits("SFRPU.EW"), bits("-"), range("7:9(2)")), (Ok(255), Ok(0), Ok((7, 2))));
        assert_eq!(
            (micros(".05"), micros("1.5"), micros("-1"), micros("x")),
            (Some(50_000), Some(1_500_000), None, None)
        );
        assert!(parts("S 0:0(0) <mss 5").is_err() && bits("X").is_err() && range("0:5(4)").is_err());
        for bad in ["mss", "mss x", "sack 1", "odd 7"] {
            assert!(options(bad, |_| None).is_err(), "{bad}");
        }
    }
}
