//! The page of a report: one HTML file that loads nothing and runs no script. Each number in it stands in a `data` element with its exact
//! value and its place in the JSON at the end.

use std::time::Duration;

use serde_json::Value;

use crate::cli::drawing::{Axis, Canvas, LEFT, MARGIN, STYLE, WIDTH, escape};
use crate::cli::plan::report::{size, time};

/// Of the page around the pictures.
const PAGE_STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; max-width: 960px; margin: 24px auto; padding: 0 16px;
  color: #1f2328; background: #ffffff; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 24px 0 4px; } p { margin: 4px 0 12px; }
svg { width: 100%; height: auto; display: block; } .cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { border: 1px solid #d0d7de; border-radius: 6px; padding: 8px 14px; } .card b { display: block; font-size: 20px; }
.soft { color: #656d76; } table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 3px 10px; border-bottom: 1px solid #d0d7de; } th:first-child, td:first-child { text-align: left; }
rect.sent { fill: #0f62c9; stroke: none; } rect.left { fill: #c2570c; stroke: none; }
.p0 { fill: #0f62c9; } .p1 { fill: #c2570c; } .p2 { fill: #1a7f37; } .p3 { fill: #8250df; } .p4 { fill: #bf8700; } .p5 { fill: #6e7781; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } .soft { color: #8d96a0; } .card, th, td { border-color: #30363d; }
  rect.sent { fill: #58a6ff; } rect.left { fill: #f0883e; }
  .p0 { fill: #58a6ff; } .p1 { fill: #f0883e; } .p2 { fill: #3fb950; } .p3 { fill: #a371f7; } .p4 { fill: #d29922; } .p5 { fill: #8d96a0; }
}";

/// Height of a diagram, and its upper edge within its picture.
const HIGH: f64 = 190.0;
const TOP: f64 = 36.0;

/// Rounds that the table lists; more are in the JSON.
const LISTED: usize = 100;

/// The whole page.
pub(super) fn page(data: &Value) -> String {
    let text = |at: &str| escape(data.pointer(at).and_then(Value::as_str).unwrap_or_default());
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    // Nothing is loaded, whatever a name in the data contains.
    page += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" href=\"data:,\">\n";
    page += &format!(
        "<title>A migration to {}</title>\n<style>\n{STYLE}\n{PAGE_STYLE}\n</style>\n</head>\n<body>\n",
        text("/to")
    );
    page += &format!("<h1>A migration to {}</h1>\n<p class=\"soft\">{}</p>\n", text("/to"), text("/end"));
    page += &cards(data);
    let rounds = data["rounds"].as_array().map_or(&[][..], Vec::as_slice);
    let samples = data["samples"].as_array().map_or(&[][..], Vec::as_slice);
    if !rounds.is_empty() {
        page += "<h2>Round by round</h2>\n<p class=\"soft\">A migration converges while each round leaves less dirty than it sent.</p>\n";
        page += &by_round(rounds);
        page += &table_of_rounds(data, rounds);
    }
    if samples.len() > 1 {
        page += "<h2>Over time</h2>\n";
        page += &over_time(samples);
    }
    if let Some(parts) = data.pointer("/figures/downtime-parts").and_then(Value::as_object) {
        page += "<h2>Where the downtime went</h2>\n";
        let parts: Vec<_> = parts.iter().map(|(name, value)| (name.as_str(), value.as_u64().unwrap_or(0))).collect();
        page += &downtime(data, &parts);
        page += &table_of_parts(data, &parts);
    }
    // `<` would end the element within a string; JSON has no other place for it.
    let json = data.to_string().replace('<', "\\u003c");
    page += &format!("<script type=\"application/json\" id=\"data\">{json}</script>\n</body>\n</html>\n");
    page
}

/// A number of the JSON, exactly and as a person reads it.
fn number(data: &Value, at: &str, shown: impl Fn(f64) -> String) -> Option<String> {
    let value = data.pointer(at)?.as_number()?;
    Some(format!("<data value=\"{value}\" title=\"{at}\">{}</data>", escape(shown(value.as_f64()?))))
}

fn bytes(value: f64) -> String {
    size(value as u64)
}

fn milliseconds(value: f64) -> String {
    time(Duration::from_secs_f64(value / 1e3))
}

fn microseconds(value: f64) -> String {
    time(Duration::from_secs_f64(value / 1e6))
}

fn plain(value: f64) -> String {
    value.to_string()
}

/// How a person reads a number.
type Shown = fn(f64) -> String;

fn cards(data: &Value) -> String {
    let cards: [(&str, &str, Shown); 8] = [
        ("total time", "/figures/total-time", milliseconds),
        ("downtime, measured", "/figures/downtime", milliseconds),
        ("downtime, predicted", "/figures/expected-downtime", milliseconds),
        ("downtime, allowed", "/parameters/downtime-limit", milliseconds),
        ("sent", "/figures/ram/transferred", bytes),
        ("guest memory", "/figures/ram/total", bytes),
        ("rounds", "/figures/ram/dirty-sync-count", plain),
        ("guest slowed by", "/figures/guest-slowdown/percent", |percent| format!("{percent:.1} %")),
    ];
    let cards = cards.iter().filter_map(|(name, at, shown)| {
        Some(format!(
            "<div class=\"card\"><span class=\"soft\">{name}</span><b>{}</b></div>\n",
            number(data, at, shown)?
        ))
    });
    format!("<div class=\"cards\">\n{}</div>\n", cards.collect::<String>())
}

/// What was sent in each round, beside what the guest dirtied meanwhile.
fn by_round(rounds: &[Value]) -> String {
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
            let tells = format!("round {}: {} {name}", index + 1, bytes(value));
            canvas.bar(class, [x, y], [wide, axis.bottom() - y], &tells);
        }
        if index.is_multiple_of(rounds.len().div_ceil(20)) {
            canvas.text("small faint middle", middle, TOP + HIGH + 18.0, &(index + 1).to_string());
        }
    }
    canvas.text("small faint end", LEFT - 12.0, TOP + HIGH + 18.0, "round");
    canvas.finish()
}

/// What went through the wire a second, beside what the guest dirtied, and the throttle.
fn over_time(samples: &[Value]) -> String {
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
            let tells = format!("throttled by {} %", of(from, "cpu-throttle-percentage"));
            canvas.bar("throttle", [x(from), TOP + HIGH - high], [x(to) - x(from), high], &tells);
        }
    }
    canvas.axis(&axis, |value| format!("{}/s", bytes(value)));
    canvas.line("sent", samples.iter().map(|sample| (x(sample), axis.y(sent(sample)))));
    canvas.line("left", samples.iter().map(|sample| (x(sample), axis.y(dirtied(sample)))));
    canvas.text("small faint", LEFT, TOP + HIGH + 18.0, &milliseconds(first));
    canvas.text("small faint end", WIDTH - MARGIN, TOP + HIGH + 18.0, &milliseconds(last));
    canvas.finish()
}

/// The parts of the pause, in µs, one behind the other; beside it what was predicted and what is allowed.
fn downtime(data: &Value, parts: &[(&str, u64)]) -> String {
    let millisecond = |at: &str| data.pointer(at).and_then(Value::as_f64).map(|ms| ms * 1e3);
    let predicted = millisecond("/figures/expected-downtime");
    let total: f64 = parts.iter().map(|(_, part)| *part as f64).sum();
    let scale = (WIDTH - 2.0 * MARGIN) / total.max(predicted.unwrap_or(0.0)).max(1.0);
    let mut canvas = Canvas::new("Parts of the downtime", 132.0, "");
    let mut x = MARGIN;
    for (index, (name, part)) in parts.iter().enumerate() {
        let wide = *part as f64 * scale;
        let share = if total > 0.0 { 100.0 * *part as f64 / total } else { 0.0 };
        canvas.bar(
            &format!("p{}", index % 6),
            [x, 16.0],
            [wide, 40.0],
            &format!("{name}: {}, {share:.1} %", microseconds(*part as f64)),
        );
        x += wide;
    }
    if let Some(predicted) = predicted {
        let at = MARGIN + predicted * scale;
        canvas.put(&format!(r#"<path class="limit" d="M{at:.1} 8V64"/>"#));
        let class = if at > WIDTH / 2.0 { "small red end" } else { "small red" };
        canvas.text(class, at, 80.0, &format!("predicted: {}", microseconds(predicted)));
    }
    let step = (WIDTH - 2.0 * MARGIN) / parts.len().max(1) as f64;
    for (index, (name, _)) in parts.iter().enumerate() {
        let at = MARGIN + step * index as f64;
        canvas.bar(&format!("p{}", index % 6), [at, 100.0], [12.0, 12.0], name);
        canvas.text("small", at + 18.0, 110.0, name);
    }
    canvas.finish()
}

fn table_of_rounds(data: &Value, rounds: &[Value]) -> String {
    let mut table = String::from(
        "<table>\n<tr><th>round</th><th>took</th><th>sent</th><th>whole pages</th><th>zero pages</th><th>dirtied</th></tr>\n",
    );
    for index in 0..rounds.len().min(LISTED) {
        let cell =
            |member: &str, shown: Shown| number(data, &format!("/rounds/{index}/{member}"), shown).unwrap_or_default();
        table += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            index + 1,
            cell("duration-us", microseconds),
            cell("bytes", bytes),
            cell("normal", plain),
            cell("zero", plain),
            cell("dirtied-bytes", bytes),
        );
    }
    table += "</table>\n";
    if rounds.len() > LISTED {
        table += &format!("<p class=\"soft\">and {} more</p>\n", rounds.len() - LISTED);
    }
    table
}

fn table_of_parts(data: &Value, parts: &[(&str, u64)]) -> String {
    let mut table = String::from("<table>\n<tr><th>part</th><th>took</th></tr>\n");
    for (name, _) in parts {
        let took = number(data, &format!("/figures/downtime-parts/{name}"), microseconds).unwrap_or_default();
        table += &format!("<tr><td>{}</td><td>{took}</td></tr>\n", escape(name));
    }
    table + "</table>\n"
}
