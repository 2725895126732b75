//! Waits of the guest's writes to memory: in post-copy a write waits until its page has come.

use std::fmt;

use serde_json::{Value, json};

use crate::report::median;

/// The waits between two answers of the guest, as the guest measured them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Waits {
    /// Number of the waits.
    number: u64,
    /// Median, in ms.
    median: f64,
    /// 99th percentile, in ms.
    p99: f64,
    /// Sum, in ms.
    sum: f64,
}

impl Waits {
    /// The waits in `memory` of a guest's answer `mark`; `None` if the guest writes no memory.
    pub(crate) fn of(memory: &Value) -> Option<Self> {
        let ms = |figure: &str| memory[figure].as_f64().unwrap_or(0.0) / 1e3;
        let number = memory["waits"].as_u64()?;
        Some(Self { number, median: ms("median_us"), p99: ms("p99_us"), sum: ms("sum_us") })
    }

    /// The median of each figure.
    pub(crate) fn median(all: Vec<Self>) -> Option<Self> {
        let of = |figure: fn(&Self) -> f64| median(all.iter().map(figure));
        (!all.is_empty()).then(|| Self {
            number: of(|waits| waits.number as f64) as u64,
            median: of(|waits| waits.median),
            p99: of(|waits| waits.p99),
            sum: of(|waits| waits.sum),
        })
    }

    /// Median, 99th percentile and sum as ratios to those of `other`.
    pub(crate) fn to(self, other: Self) -> [f64; 3] {
        [self.median / other.median, self.p99 / other.p99, self.sum / other.sum]
    }

    pub(crate) fn json(self) -> Value {
        json!({ "number": self.number, "median_ms": self.median, "p99_ms": self.p99, "sum_ms": self.sum })
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, median, p99, sum } = self;
        write!(f, "{number}, median {median:.2} ms, 99 % within {p99:.2} ms, {sum:.0} ms together")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(number: u64, median: u64) -> Waits {
        let figures =
            json!({ "waits": number, "median_us": median, "p99_us": 9 * median, "sum_us": 2 * number * median });
        Waits::of(&figures).unwrap()
    }

    /// By hand: the median of two is the larger one.
    #[test]
    fn figures_are_in_milliseconds_and_summarised_one_by_one() {
        assert_eq!(waits(3, 1500).to_string(), "3, median 1.50 ms, 99 % within 13.50 ms, 9 ms together");
        let both = Waits::median(vec![waits(10, 2000), waits(40, 1000)]).unwrap();
        assert_eq!(both.to_string(), "40, median 2.00 ms, 99 % within 18.00 ms, 80 ms together");
        assert_eq!(both.to(waits(10, 4000)), [0.5, 0.5, 1.0]);
        assert_eq!((Waits::median(Vec::new()), Waits::of(&Value::Null)), (None, None));
    }
}
