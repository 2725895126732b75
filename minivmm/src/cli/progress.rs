//! Progress of a migration: on a terminal one line that is rewritten, elsewhere a line of `key=value` words, with the unit in
//! the key, for each new phase and round.

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;
use serde_json::Value;
use vmstate::error::Printable;

use crate::cli::units::{milliseconds, rate, size};

/// Columns of a terminal that does not report its width.
const COLUMNS: usize = 80;
/// Columns left free: a line that fills the terminal wraps and is then not rewritten, and the terminal writes `^C` behind the
/// line.
const SPARE: usize = 3;

/// Shows a migration on standard error.
#[derive(Debug)]
pub(super) struct Progress {
    /// Standard error is a terminal: the line is rewritten.
    terminal: bool,
    /// The terminal shows a line without its newline.
    open: bool,
    /// Phase and round of the last line.
    last: Option<(String, u64)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), open: false, last: None }
    }

    /// Shows the answer to `query-migrate`.
    pub(super) fn show(&mut self, figures: &Value) {
        if self.terminal {
            self.rewrite(|room| fitting(figures, room));
            return;
        }
        let now = (phase(figures).to_owned(), figures["ram"]["dirty-sync-count"].as_u64().unwrap_or(0));
        if self.last.as_ref() != Some(&now) {
            print(&words(figures));
            self.last = Some(now);
        }
    }

    /// Shows that the user has cancelled.
    pub(super) fn cancelling(&mut self) {
        if self.terminal {
            self.rewrite(|_| "cancelling; a second Ctrl-C does not wait for the end of it".into());
        }
    }

    fn rewrite(&mut self, text: impl FnOnce(usize) -> String) {
        let mut stderr = io::stderr().lock();
        let columns = tcgetwinsize(&stderr).map_or(COLUMNS, |size| usize::from(size.ws_col));
        let room = if columns > SPARE { columns } else { COLUMNS } - SPARE;
        let text: String = Printable(&text(room)).to_string().chars().take(room).collect();
        // ECMA-48 EL: erases what a longer line before left.
        let _ = write!(stderr, "\r{text}\x1b[K");
        let _ = stderr.flush();
        self.open = true;
    }
}

impl Drop for Progress {
    /// Erases the line.
    fn drop(&mut self) {
        if self.open {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[expect(clippy::print_stderr, reason = "a line without the program's name")]
pub(super) fn print(line: &str) {
    eprintln!("{}", Printable(line));
}

fn phase(figures: &Value) -> &str {
    figures["status"].as_str().unwrap_or("waiting")
}

/// Predicted milliseconds until the end, where there is a prediction.
fn left(figures: &Value) -> Option<u64> {
    Some(figures["expected-total-time"].as_u64()?.saturating_sub(figures["total-time"].as_u64()?))
}

/// Rounds a predicted time to the precision that a prediction can have.
fn rounded(milliseconds: u64) -> u64 {
    milliseconds.next_multiple_of(if milliseconds < 10_000 { 100 } else { 1000 })
}

/// Rate at which the guest dirties memory, in bytes a second.
fn dirty_rate(ram: &Value) -> u64 {
    ram["dirty-pages-rate"].as_u64().unwrap_or(0).saturating_mul(ram["page-size"].as_u64().unwrap_or(0))
}

/// Rate at which the source sends, in bytes a second.
fn sending_rate(ram: &Value) -> u64 {
    // QMP has 10⁶ bits a second. A float becomes the nearest integer, at least 0.
    (ram["mbps"].as_f64().unwrap_or(0.0) * 1e6 / 8.0).round() as u64
}

/// Length of the line that is shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Style {
    All,
    /// Leaves out figures that change little.
    Short,
    /// Abbreviates the words and units of `Short`.
    Brief,
    /// Also leaves out the label of the time to the end.
    Briefest,
}

/// All figures, for a person.
pub(super) fn sentence(figures: &Value) -> String {
    line(figures, Style::All)
}

/// As many figures as fit into `room`, for a person; the last one may be cut off in a terminal of less than 80 columns.
fn fitting(figures: &Value, room: usize) -> String {
    let fits = |text: &String| text.chars().count() <= room;
    let mut longer = [Style::All, Style::Short, Style::Brief].into_iter().map(|style| line(figures, style));
    longer.find(fits).unwrap_or_else(|| line(figures, Style::Briefest))
}

fn line(figures: &Value, style: Style) -> String {
    let ram = &figures["ram"];
    if ram.is_null() {
        return phase(figures).into();
    }
    let unit = |text: String| if style >= Style::Brief { text.replace("iB", "").replace(' ', "") } else { text };
    // Copied disks have the same members.
    let bytes = |of: &Value, member: &str| of[member].as_u64().unwrap_or(0);
    let disk = &figures["disk"];
    let round = &ram["dirty-sync-count"];
    // The round implies the phase `active`.
    let mut text = match (style, phase(figures)) {
        (Style::Short | Style::Brief | Style::Briefest, "active") => String::new(),
        (_, phase) => format!("{phase}, "),
    };
    if style == Style::All {
        let left = |of: &Value| format!("{} left of {}", size(bytes(of, "remaining")), size(bytes(of, "total")));
        text += &format!("round {round}: {}", left(ram));
        if !disk.is_null() {
            text += &format!(", disk {}", left(disk));
        }
        text += &format!(", {} sent", size(bytes(ram, "transferred")));
    } else {
        let left = bytes(ram, "remaining").saturating_add(bytes(disk, "remaining"));
        text += &format!("round {round}: {} left", unit(size(left)));
    }
    text += &format!(", {}", unit(rate(sending_rate(ram))));
    // The dirty rate is first measured at the end of round 1.
    if round.as_u64() > Some(1) {
        let word = ["guest dirties", "dirties", "dirty", "dirty"][style as usize];
        text += &format!(", {word} {}", unit(rate(dirty_rate(ram))));
    }
    if let Some(throttle) = figures["cpu-throttle-percentage"].as_u64() {
        let word = ["throttled by", "throttled by", "throttle", "throttle"][style as usize];
        text += &format!(", {word} {}", unit(format!("{throttle} %")));
    }
    if let Some(downtime) = figures["expected-downtime"].as_u64() {
        let word = if style == Style::Briefest { "down" } else { "downtime" };
        text += &format!(", {word} {}", unit(milliseconds(downtime)));
    }
    if let Some(left) = left(figures) {
        text +=
            &format!(", {}", unit(milliseconds(rounded(left))) + if style == Style::Briefest { "" } else { " to go" });
    }
    text
}

/// All figures, for a program or a log.
fn words(figures: &Value) -> String {
    let ram = &figures["ram"];
    let mut text = format!("phase={}", phase(figures));
    let mut add = |key: &str, value: Option<u64>| {
        if let Some(value) = value {
            text += &format!(" {key}={value}");
        }
    };
    if !ram.is_null() {
        add("round", ram["dirty-sync-count"].as_u64());
        add("sent-bytes", ram["transferred"].as_u64());
        add("left-bytes", ram["remaining"].as_u64());
        add("disk-sent-bytes", figures["disk"]["transferred"].as_u64());
        add("disk-left-bytes", figures["disk"]["remaining"].as_u64());
        add("bytes-per-second", Some(sending_rate(ram)));
        add("dirty-bytes-per-second", Some(dirty_rate(ram)));
        add("throttle-percent", Some(figures["cpu-throttle-percentage"].as_u64().unwrap_or(0)));
    }
    add("expected-downtime-ms", figures["expected-downtime"].as_u64());
    add("time-left-ms", left(figures));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures() -> Value {
        json!({
            "status": "active", "total-time": 1500, "expected-total-time": 4100, "expected-downtime": 120,
            "cpu-throttle-percentage": 20,
            "ram": {"transferred": 471_859_200_u64, "remaining": 125_829_120, "total": 1 << 30, "mbps": 3355.4432,
                    "dirty-sync-count": 3, "dirty-pages-rate": 32_768, "page-size": 4096},
        })
    }

    #[test]
    fn a_person_reads_a_sentence() {
        assert_eq!(
            sentence(&figures()),
            "active, round 3: 120 MiB left of 1 GiB, 450 MiB sent, 400 MiB/s, guest dirties 128 MiB/s, throttled by 20 %, \
             downtime 120 ms, 2.6 s to go"
        );
        let mut copies = figures();
        copies["disk"] = json!({"transferred": 1 << 20, "remaining": 2_u64 << 30, "total": 20_u64 << 30});
        assert!(
            sentence(&copies).contains("round 3: 120 MiB left of 1 GiB, disk 2 GiB left of 20 GiB, 450 MiB sent, ")
        );
        assert!(fitting(&copies, 77).starts_with("round 3: 2.12G left, "), "{}", fitting(&copies, 77));
        assert!(words(&copies).contains(" left-bytes=125829120 disk-sent-bytes=1048576 disk-left-bytes=2147483648 "));
        let mut first = figures();
        first["ram"]["dirty-sync-count"] = 1.into();
        assert!(sentence(&first).contains("400 MiB/s, throttled"), "nothing is measured yet");
        assert_eq!(sentence(&json!({"status": "setup"})), "setup");
        assert_eq!(sentence(&json!({})), "waiting");
    }

    /// The figures that decide how the migration ends fit into a terminal of 80 columns, three of which are left free.
    #[test]
    fn a_narrow_terminal_shows_less_and_the_end_all_the_same() {
        let mut figures = figures();
        let short =
            "round 3: 120 MiB left, 400 MiB/s, dirties 128 MiB/s, throttled by 20 %, downtime 120 ms, 2.6 s to go";
        assert_eq!(fitting(&figures, 1000), sentence(&figures));
        assert_eq!(fitting(&figures, short.len()), short);
        let brief = "round 3: 120M left, 400M/s, dirty 128M/s, throttle 20%, down 120ms, 2.6s";
        assert_eq!(fitting(&figures, 77), brief);
        assert_eq!(brief.len(), 72);
        assert_eq!(fitting(&figures, 82), brief.replace("down ", "downtime ") + " to go");
        figures["status"] = "cancelling".into();
        assert!(fitting(&figures, short.len()).starts_with("cancelling, round 3: 120M left"));
        assert_eq!(fitting(&json!({"status": "setup"}), 77), "setup");
    }

    #[test]
    fn a_program_reads_words_with_units() {
        assert_eq!(
            words(&figures()),
            "phase=active round=3 sent-bytes=471859200 left-bytes=125829120 bytes-per-second=419430400 \
             dirty-bytes-per-second=134217728 throttle-percent=20 expected-downtime-ms=120 time-left-ms=2600"
        );
        assert_eq!(words(&json!({"status": "setup"})), "phase=setup");
    }
}
