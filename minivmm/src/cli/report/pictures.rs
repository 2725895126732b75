//! The diagrams of a report.

use serde_json::Value;

use super::shown::{Shown, bytes, bytes_per_second, elapsed, milliseconds};
use crate::cli::drawing::{Axis, Canvas, LEFT, MARGIN, WIDTH};

/// Height of a diagram, and its upper edge within its picture.
const HIGH: f64 = 190.0;
const TOP: f64 = 36.0;

/// Part of a time, drawn as a piece of a bar.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
    /// Path of the number in the JSON.
    pub(super) at: String,
    /// Time in microseconds.
    pub(super) time: f64,
    /// Format of the JSON's number.
    pub(super) shown: Shown,
}

/// Draws what was sent in each round, beside what the guest dirtied meanwhile.
pub(super) fn by_round(rounds: &[Value]) -> String {
    let of = |round: &Value, member: &str| round[member].as_f64().unwrap_or(0.0);
    let mut canvas = Canvas::new("Bytes sent and dirtied in each round", TOP + HIGH + 32.0, "");
    let all = rounds.iter().flat_map(|round| [of(round, "bytes"), of(round, "dirtied-bytes")]);
    let axis = Axis::steps(1024.0, all, (TOP, HIGH));
    canvas.legend(TOP, &[("blue", "sent"), ("orange", "dirtied meanwhile")]);
    canvas.axis(&axis, bytes);
    let step = (WIDTH - MARGIN - LEFT) / rounds.len() as f64;
    let wide = (step * 0.4).min(60.0);
    for (index, round) in rounds.iter().enumerate() {
        let middle = LEFT + step * (index as f64 + 0.5);
        for (class, member, x) in [("sent", "bytes", middle - wide), ("left", "dirtied-bytes", middle)] {
            let (value, y) = (of(round, member), axis.y(of(round, member)));
            let name = if class == "sent" { "sent" } else { "dirtied" };
            let title = format!("round {}: {} {name}", index + 1, bytes(value));
            canvas.bar(class, [x, y], [wide, axis.bottom() - y], &title);
        }
        if index.is_multiple_of(rounds.len().div_ceil(20)) {
            canvas.text("small faint middle", middle, TOP + HIGH + 18.0, &(index + 1).to_string());
        }
    }
    canvas.text("small faint end", LEFT - 12.0, TOP + HIGH + 18.0, "round");
    canvas.finish()
}

/// Draws the bandwidth, the dirty rate and the throttle over time.
pub(super) fn over_time(samples: &[Value]) -> String {
    let of = |sample: &Value, member: &str| sample[member].as_f64().unwrap_or(0.0);
    let sent = |sample: &Value| of(sample, "mbps") * 1e6 / 8.0;
    let dirtied = |sample: &Value| of(sample, "dirty-pages-rate") * of(sample, "page-size");
    let (first, last) =
        (samples.first().map_or(0.0, |s| of(s, "at-ms")), samples.last().map_or(1.0, |s| of(s, "at-ms")));
    let x = |sample: &Value| LEFT + (WIDTH - MARGIN - LEFT) * (of(sample, "at-ms") - first) / (last - first).max(1.0);
    let mut canvas = Canvas::new("Bandwidth, dirty rate and throttle over time", TOP + HIGH + 32.0, "");
    let axis = Axis::steps(1024.0, samples.iter().flat_map(|sample| [sent(sample), dirtied(sample)]), (TOP, HIGH));
    canvas.legend(TOP, &[("blue", "bandwidth"), ("orange", "dirty rate"), ("violet", "throttle, 0 to 100 %")]);
    for pair in samples.windows(2) {
        let [from, to] = pair else { continue };
        let high = HIGH * of(from, "cpu-throttle-percentage") / 100.0;
        if high > 0.0 {
            let title = format!("throttled by {} %", of(from, "cpu-throttle-percentage"));
            canvas.bar("throttle", [x(from), TOP + HIGH - high], [x(to) - x(from), high], &title);
        }
    }
    canvas.axis(&axis, bytes_per_second);
    canvas.line("sent", samples.iter().map(|sample| (x(sample), axis.y(sent(sample)))));
    canvas.line("left", samples.iter().map(|sample| (x(sample), axis.y(dirtied(sample)))));
    canvas.text("small faint", LEFT, TOP + HIGH + 18.0, &milliseconds(first));
    canvas.text("small faint end", WIDTH - MARGIN, TOP + HIGH + 18.0, &milliseconds(last));
    canvas.finish()
}

/// Draws the parts of a time one behind the other, and a mark at another time to compare them with, in microseconds.
pub(super) fn parts(title: &str, parts: &[Part], mark: Option<(&str, f64)>) -> String {
    let total: f64 = parts.iter().map(|part| part.time).sum();
    let scale = (WIDTH - 2.0 * MARGIN) / total.max(mark.map_or(0.0, |(_, at)| at)).max(1.0);
    let mut canvas = Canvas::new(title, 88.0, "");
    let mut x = MARGIN;
    for (index, Part { name, time, .. }) in parts.iter().enumerate() {
        let share = if total > 0.0 { 100.0 * time / total } else { 0.0 };
        let (class, wide) = (format!("p{index}"), time * scale);
        canvas.bar(&class, [x, 16.0], [wide, 40.0], &format!("{name}: {}, {share:.1} %", elapsed(*time)));
        x += wide;
    }
    if let Some((name, time)) = mark {
        let at = MARGIN + time * scale;
        canvas.put(&format!(r#"<path class="limit" d="M{at:.1} 8V64"/>"#));
        let class = if at > WIDTH / 2.0 { "small red end" } else { "small red" };
        canvas.text(class, at, 80.0, &format!("{name}: {}", elapsed(time)));
    }
    canvas.finish()
}
