//! Formats of sizes, rates and times for people: about three digits, and a unit.

use std::time::Duration;

/// Formats bytes, in powers of 1024.
pub(super) fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Formats bytes a second, in powers of 1024.
pub(super) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", size(bytes_per_second))
}

/// Formats a wire's bandwidth as bits a second in powers of 1000, as networks have it.
pub(super) fn bits(bytes_per_second: u64) -> String {
    scaled(bytes_per_second as f64 * 8.0, 1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s"])
}

/// Formats a measured time.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, digits, unit) = match seconds {
        0.0 => (0.0, 0, "s"),
        _ if seconds < 1e-5 => (seconds * 1e6, 2, "µs"),
        _ if seconds < 1e-4 => (seconds * 1e6, 1, "µs"),
        _ if seconds < 0.01 => (seconds * 1e3, 2, "ms"),
        _ if seconds < 0.9995 => (seconds * 1e3, 0, "ms"),
        _ if seconds < 100.0 => (seconds, 2, "s"),
        _ if seconds < 36_000.0 => (seconds, 0, "s"),
        _ => (seconds / 3600.0, 1, "h"),
    };
    format!("{} {unit}", short(&format!("{value:.digits$}")))
}

/// Formats milliseconds of QMP as [`time`] does.
pub(super) fn milliseconds(milliseconds: u64) -> String {
    time(Duration::from_millis(milliseconds))
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step * 0.9995 && unit + 1 < units.len() {
        (value, unit) = (value / step, unit + 1);
    }
    let digits = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{} {}", short(&format!("{value:.digits$}")), units.get(unit).copied().unwrap_or_default())
}

/// Removes the zeros at the end of a fraction.
fn short(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_or_so_and_a_unit() {
        let sizes = [0, 1023, 4096, 10 << 10, (1 << 20) - 1, 1_600_000_000, 15 << 40].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "4 KiB", "10 KiB", "1 MiB", "1.49 GiB", "15 TiB"]);
        assert_eq!([rate(471_859_200), bits(1_250_000_000)], ["450 MiB/s", "10 Gbit/s"]);
        let times = [0, 1_234, 45_670, 400_000, 9_000_000, 123_400_000, 999_600_000, 2_600_000_000, 353_400_000_000];
        let times = times.map(|nanoseconds| time(Duration::from_nanos(nanoseconds)));
        assert_eq!(times, ["0 s", "1.23 µs", "45.7 µs", "0.4 ms", "9 ms", "123 ms", "1 s", "2.6 s", "353 s"]);
        assert_eq!([5_010, 36_000_000].map(milliseconds), ["5.01 s", "10 h"]);
    }
}
