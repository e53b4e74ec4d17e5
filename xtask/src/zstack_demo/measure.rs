//! Two sides measured in turns, and medians.

/// Rounds of each row.
pub const ROUNDS: usize = 3;

/// Which side of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The kernel's TCP.
    Kernel,
    /// The engine: alone, or in zstackd.
    Engine,
}

/// Figures of both sides, the kernel's first: medians over the rounds, whose sides take turns in who is first.
pub fn in_turns<const N: usize>(
    mut one: impl FnMut(Side) -> Result<[f64; N], String>,
) -> Result<[[f64; N]; 2], String> {
    let mut figures: [Vec<[f64; N]>; 2] = Default::default();
    for round in 0..ROUNDS {
        let order = [Side::Kernel, Side::Engine];
        for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            figures[at].push(one(order[at])?);
        }
    }
    Ok(figures.map(|rounds| std::array::from_fn(|n| median(rounds.iter().map(|figures| figures[n]).collect()))))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The first number behind `"name":` in a JSON text.
pub fn number(json: &str, name: &str) -> Option<f64> {
    let rest = json.split_once(&format!("\"{name}\":"))?.1.trim_start();
    rest[..rest.find([',', '\n', '}'])?].trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_report() {
        let json = "{\n  \"a\": 1.5,\n  \"l\": {\n \"p50\": 80.0\n },\n \"n\": null\n}";
        assert_eq!(
            (number(json, "a"), number(json, "p50"), number(json, "n"), number(json, "x")),
            (Some(1.5), Some(80.0), None, None)
        );
    }

    #[test]
    fn sides_take_turns_and_figures_are_medians() {
        let mut seen = vec![];
        let medians = in_turns(|side| {
            seen.push(side);
            Ok([if side == Side::Kernel { 1.0 } else { 2.0 }, seen.len() as f64])
        });
        use Side::{Engine as E, Kernel as K};
        assert_eq!(seen, [K, E, E, K, K, E]);
        assert_eq!(medians, Ok([[1.0, 4.0], [2.0, 3.0]]));
        assert_eq!(in_turns(|_| Err::<[f64; 0], _>("no".into())), Err("no".into()));
    }
}
