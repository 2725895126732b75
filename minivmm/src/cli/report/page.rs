//! HTML page of a report, which loads nothing and runs no script. Each number is a `data` element with its exact value and its
//! path in the JSON that the page embeds.

use serde_json::Value;

use super::heat;
use super::pictures::{self, Part};
use super::shown::{Shown, bytes, elapsed, milliseconds, nanoseconds, number, plain};
use crate::cli::drawing::{STYLE, escape};

/// Style of the page outside the pictures.
const PAGE_STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; max-width: 960px; margin: 24px auto; padding: 0 16px;
  color: #1f2328; background: #ffffff; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 16px; margin: 28px 0 4px; } p { margin: 4px 0 12px; }
section + section { margin-top: 48px; } .wide { overflow-x: auto; } svg { width: 100%; min-width: 640px; height: auto; display: block; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0; }
.card { border: 1px solid #d0d7de; border-radius: 6px; padding: 8px 14px; } .card b { display: block; font-size: 22px; }
.card small { display: block; } .soft, .card small { color: #656d76; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 3px 10px; border-bottom: 1px solid #d0d7de; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; } .text { white-space: normal; }
i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
rect.sent { fill: #0f62c9; stroke: none; } rect.left { fill: #c2570c; stroke: none; }
.p0 { fill: #0f62c9; background: #0f62c9; } .p1 { fill: #c2570c; background: #c2570c; } .p2 { fill: #1a7f37; background: #1a7f37; }
.p3 { fill: #8250df; background: #8250df; } .p4 { fill: #bf8700; background: #bf8700; } .p5 { fill: #6e7781; background: #6e7781; }
.h0 { fill: #eaeef2; } .h1 { fill: #fbe3a6; } .h2 { fill: #f7b955; } .h3 { fill: #e8762c; } .h4 { fill: #c4321c; } .h5 { fill: #75101e; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } .soft, .card small { color: #8d96a0; } .card, th, td { border-color: #30363d; }
  rect.sent { fill: #58a6ff; } rect.left { fill: #f0883e; }
  .p0 { fill: #58a6ff; background: #58a6ff; } .p1 { fill: #f0883e; background: #f0883e; } .p2 { fill: #3fb950; background: #3fb950; }
  .p3 { fill: #a371f7; background: #a371f7; } .p4 { fill: #d29922; background: #d29922; } .p5 { fill: #8d96a0; background: #8d96a0; }
  .h0 { fill: #1c2128; } .h1 { fill: #45320f; } .h2 { fill: #84510f; } .h3 { fill: #c9661a; } .h4 { fill: #f2795f; } .h5 { fill: #ffd0c2; }
}";

/// Most rounds in the table; the JSON has all of them.
const ROUNDS: usize = 100;
/// Most devices in the table: those that took longest.
const DEVICES: usize = 8;

/// Parts of the downtime: name in the JSON, label and explanation.
const PARTS: [(&str, &str, &str); 6] = [
    ("pause", "stop", "vCPUs and devices come to rest, and their state is read"),
    ("sync", "dirty log", "the dirty log is read for the last time"),
    ("pages", "last pages", "the pages that are still dirty are handed to the wire"),
    ("devices", "devices", "devices are saved and handed to the wire"),
    ("confirm", "load", "the wire is emptied, and the destination loads and checks everything"),
    ("commit", "resume", "the destination takes over and confirms"),
];

/// Parts of the guest's gap, which only the demo measures.
const FELT: [(&str, &str, &str); 3] = [
    ("before-ms", "before", "from the guest's last tick until the guest was stopped"),
    ("stopped-ms", "stopped", "until the destination resumed the guest"),
    ("after-ms", "after", "until the guest's first tick there"),
];

/// Renders the page about some migrations.
pub(super) fn page(records: &[Value]) -> String {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    // Forbids the browser to load anything, whatever a name in the data contains.
    page += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" href=\"data:,\">\n";
    let title = records.first().map(|record| text(record, "/to")).unwrap_or_default();
    page +=
        &format!("<title>A migration to {title}</title>\n<style>\n{STYLE}\n{PAGE_STYLE}\n</style>\n</head>\n<body>\n");
    for (index, record) in records.iter().enumerate() {
        page += &format!("<section>\n{}", migration(record));
        // `<` in a string could end the element; JSON has `<` only in strings.
        let json = record.to_string().replace('<', "\\u003c");
        let id = if index == 0 { "data".into() } else { format!("data-{}", index + 1) };
        page += &format!("<script type=\"application/json\" id=\"{id}\">{json}</script>\n</section>\n");
    }
    page + "</body>\n</html>\n"
}

fn text(data: &Value, at: &str) -> String {
    escape(data.pointer(at).and_then(Value::as_str).unwrap_or_default())
}

/// Renders a heading, a sentence about the content, and the content.
fn chapter(title: &str, sentence: &str, content: &str) -> String {
    format!("<h2>{title}</h2>\n<p class=\"soft\">{sentence}</p>\n<div class=\"wide\">\n{content}</div>\n")
}

/// Renders what one migration was like.
fn migration(data: &Value) -> String {
    let mut page =
        format!("<h1>A migration to {}</h1>\n<p class=\"soft\">{}</p>\n", text(data, "/to"), text(data, "/end"));
    page += &cards(data);
    let list = |name: &str| data[name].as_array().map_or(&[][..], Vec::as_slice);
    let (rounds, samples) = (list("rounds"), list("samples"));
    if let Some(parts) = parts(data, "/figures/downtime-parts", &PARTS, 1.0) {
        let allowed = data.pointer("/figures/expected-downtime").and_then(Value::as_f64);
        let mark = allowed.map(|ms| ("predicted", ms * 1e3));
        let picture = pictures::parts("Parts of the downtime", &parts, mark);
        let sentence = "From the order to stop the guest until the destination ran it.";
        page += &chapter("Where the downtime went", sentence, &(picture + &table_of_parts(data, &parts)));
        page += &devices(data);
    }
    if let Some(parts) = parts(data, "/guest", &FELT, 1e3) {
        let usual = data.pointer("/guest/usual-gap-ms").and_then(Value::as_f64);
        let picture = pictures::parts("Parts of the gap", &parts, usual.map(|ms| ("without migration", ms * 1e3)));
        let sentence = "The largest gap of a tick that the guest takes each millisecond, or more often.";
        page += &chapter("What the guest felt", sentence, &(picture + &table_of_parts(data, &parts)));
    }
    if !rounds.is_empty() {
        let sentence = "A migration converges while each round leaves less dirty than it sent.";
        page += &chapter("Round by round", sentence, &(pictures::by_round(rounds) + &table_of_rounds(data, rounds)));
    }
    if samples.len() > 1 {
        let sentence =
            "What went through the wire a second, beside what the guest dirtied, and by how much it was throttled.";
        page += &chapter("Over time", sentence, &pictures::over_time(samples));
    }
    if let Some(picture) = heat::picture(&data["heat"], data.pointer("/figures/ram/total").and_then(Value::as_u64)) {
        let square = number(data, "/heat/cell-bytes", bytes).unwrap_or_default();
        let sentence = format!(
            "How often the pages of each part of guest memory were sent: once, and again when they were dirtied. A square is {square}."
        );
        page += &chapter("Dirtied memory", &sentence, &picture);
    }
    page
}

/// A main figure of a migration, and its limit or comparison.
struct Card {
    name: &'static str,
    at: (&'static str, Shown),
    beside: [Option<(&'static str, &'static str, Shown)>; 2],
}

const CARDS: [Card; 6] = [
    Card {
        name: "downtime",
        at: ("/figures/downtime", milliseconds),
        beside: [
            Some(("predicted", "/figures/expected-downtime", milliseconds)),
            Some(("allowed", "/parameters/downtime-limit", milliseconds)),
        ],
    },
    Card {
        name: "felt by the guest",
        at: ("/guest/gap-ms", milliseconds),
        beside: [Some(("usually", "/guest/usual-gap-ms", milliseconds)), None],
    },
    Card {
        name: "total time",
        at: ("/figures/total-time", milliseconds),
        beside: [Some(("rounds:", "/figures/ram/dirty-sync-count", plain)), None],
    },
    Card {
        name: "sent",
        at: ("/figures/ram/transferred", bytes),
        beside: [Some(("memory", "/figures/ram/total", bytes)), None],
    },
    Card {
        name: "sent of disks",
        at: ("/figures/disk/transferred", bytes),
        beside: [Some(("disks", "/figures/disk/total", bytes)), None],
    },
    Card {
        name: "guest slowed by",
        at: ("/figures/guest-slowdown/percent", |percent| format!("{percent:.1} %")),
        beside: [
            Some(("highest throttle", "/figures/guest-slowdown/highest-throttle", |percent| format!("{percent} %"))),
            None,
        ],
    },
];

fn cards(data: &Value) -> String {
    let cards = CARDS.iter().filter_map(|Card { name, at: (at, shown), beside }| {
        let beside = beside.iter().flatten();
        let beside =
            beside.filter_map(|(name, at, shown)| Some(format!("<small>{name} {}</small>", number(data, at, *shown)?)));
        let figure = number(data, at, *shown)?;
        let beside: String = beside.collect();
        Some(format!("<div class=\"card\"><span class=\"soft\">{name}</span><b>{figure}</b>{beside}</div>\n"))
    });
    format!("<div class=\"cards\">\n{}</div>\n", cards.collect::<String>())
}

/// Reads the parts at the path `at` of the JSON, if there are any; `scale` converts their numbers to microseconds.
fn parts(data: &Value, at: &str, known: &[(&str, &'static str, &'static str)], scale: f64) -> Option<Vec<Part>> {
    let parts = known.iter().map(|(key, name, meaning)| {
        let at = format!("{at}/{key}");
        let time = data.pointer(&at)?.as_f64()? * scale;
        Some(Part { name, meaning, at, time: time.max(0.0), shown: if scale > 1.0 { milliseconds } else { elapsed } })
    });
    parts.collect()
}

fn table_of_parts(data: &Value, parts: &[Part]) -> String {
    let rows = parts.iter().enumerate().map(|(index, Part { name, meaning, at, shown, .. })| {
        let took = number(data, at, *shown).unwrap_or_default();
        format!("<tr><td><i class=\"p{index}\"></i>{name}</td><td class=\"text\">{meaning}</td><td>{took}</td></tr>\n")
    });
    format!("<table>\n{}</table>\n", rows.collect::<String>())
}

/// Renders the table of devices that took longest to save and load.
fn devices(data: &Value) -> String {
    let sections = data["sections"].as_array().map_or(&[][..], Vec::as_slice);
    if sections.is_empty() {
        return String::new();
    }
    let mut longest: Vec<_> = (0..sections.len()).collect();
    let took =
        |section: &Value| ["save-ns", "load-ns"].map(|time| section[time].as_u64().unwrap_or(0)).iter().sum::<u64>();
    longest.sort_by_key(|&index| std::cmp::Reverse(took(&sections[index])));
    let is_loading_known = sections.iter().any(|section| !section["load-ns"].is_null());
    let columns: &[(&str, &str, Shown)] =
        &[("bytes", "bytes", plain), ("saved in", "save-ns", nanoseconds), ("loaded in", "load-ns", nanoseconds)];
    let columns = if is_loading_known { columns } else { &columns[..2] };
    let heads: String = columns.iter().map(|(head, ..)| format!("<th>{head}</th>")).collect();
    let mut table = format!("<table>\n<tr><th>device</th>{heads}</tr>\n");
    for &index in longest.iter().take(DEVICES) {
        let (name, instance) = (text(data, &format!("/sections/{index}/section")), &sections[index]["instance"]);
        let cell = |(_, member, shown): &(&str, &str, Shown)| {
            let number = number(data, &format!("/sections/{index}/{member}"), *shown).unwrap_or_default();
            format!("<td>{number}</td>")
        };
        let cells: String = columns.iter().map(cell).collect();
        let instance = if instance == 0 { String::new() } else { format!(", instance {instance}") };
        table += &format!("<tr><td>{name}{instance}</td>{cells}</tr>\n");
    }
    table += "</table>\n";
    if let Some(more) = sections.len().checked_sub(DEVICES).filter(|more| *more > 0) {
        table += &format!("<p class=\"soft\">and {more} more, which took less</p>\n");
    }
    let part = |name: &str| number(data, &format!("/figures/takeover-parts/{name}"), elapsed);
    if let (Some(machine), Some(resume)) = (part("machine"), part("resume")) {
        table += &format!(
            "<p class=\"soft\">After the last device the destination set the state of its machine in {machine}, and resumed the guest in \
             {resume}.</p>\n"
        );
    }
    let sentence = match is_loading_known {
        true => {
            "How long each section took to be saved here and loaded there; the state of vCPUs and chips was read during the stop."
        }
        false => "How long each section took to be saved; the state of vCPUs and chips was read during the stop.",
    };
    chapter("Device by device", sentence, &table)
}

fn table_of_rounds(data: &Value, rounds: &[Value]) -> String {
    let mut table = String::from(
        "<table>\n<tr><th>round</th><th>took</th><th>sent</th><th>whole pages</th><th>zero pages</th><th>dirtied</th></tr>\n",
    );
    for index in 0..rounds.len().min(ROUNDS) {
        let cell =
            |member: &str, shown: Shown| number(data, &format!("/rounds/{index}/{member}"), shown).unwrap_or_default();
        table += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            index + 1,
            cell("duration-us", elapsed),
            cell("bytes", bytes),
            cell("normal", plain),
            cell("zero", plain),
            cell("dirtied-bytes", bytes),
        );
    }
    table += "</table>\n";
    if rounds.len() > ROUNDS {
        table += &format!("<p class=\"soft\">and {} more</p>\n", rounds.len() - ROUNDS);
    }
    table
}
