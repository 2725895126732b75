//! The report as a picture: a lane for each monitor, with a bar for the time in which the monitor ran the guest, and
//! the figures of the migration to it below.

use std::fmt::Write;
use std::time::Duration;

use vmstate_lab::picture::{MARGIN, Picture, WIDTH, escape};

use crate::report::{DemoReport, Hop, Verdict};

/// Left end of bars and their texts.
const LEFT: f64 = 150.0;
/// Top of the first lane.
const TOP: f64 = 88.0;
const LANE: f64 = 82.0;
const BAR: f64 = 20.0;
/// Height below the last lane: axis, legend, verdict.
const FOOT: f64 = 132.0;
/// Largest number of marks on the axis.
const MARKS: u64 = 12;

/// Draws the report. `command` made the report; `emulated` means that its figures are those of an emulated host.
pub(crate) fn draw(report: &DemoReport, command: &str, emulated: bool) -> String {
    let lanes = report.hops.len() + 1;
    let height = TOP + LANE * lanes as f64 + FOOT;
    let moves = if lanes == 2 { "One live migration".into() } else { format!("{} live migrations", lanes - 1) };
    let title = format!("{moves} of one running guest");
    let mut canvas = Picture::new(&title, height);
    let place = if emulated { "; measured in an emulated host, which is many times slower" } else { "" };
    canvas.text("faint", MARGIN, 60.0, &format!("{}{place}", report.guest));

    let end = report.hops.last().map_or(Duration::from_secs(1), |hop| hop.times.verified);
    let scale = Scale((WIDTH - MARGIN - LEFT) / end.as_secs_f64().max(1e-3));
    axis(&mut canvas, &scale, end, TOP + LANE * lanes as f64);
    // Drawn first, because the texts are to be on top.
    for (lane, hop) in report.hops.iter().enumerate() {
        let (from, to) = (scale.x(stopped(hop)), scale.x(hop.times.arrived));
        let (above, below) = (TOP + LANE * lane as f64 + BAR, TOP + LANE * (lane + 1) as f64);
        canvas.put(&format!(r#"<path class="moves" d="M{from:.1} {above}L{to:.1} {below}"/>"#));
    }
    let mut arrived = Duration::ZERO;
    for lane in 0..lanes {
        let y = TOP + LANE * lane as f64;
        let came = lane.checked_sub(1).and_then(|before| report.hops.get(before));
        let name = came.map_or(&report.first, |hop| &hop.to);
        canvas.text("name", MARGIN, y + 15.0, name);
        match came {
            None => canvas.text("small", LEFT, y + 38.0, &format!("boots in {:.1} s", report.boot.as_secs_f64())),
            Some(hop) => {
                scale.bar(&mut canvas, &format!("{} takes", class(name)), [hop.times.begun, hop.times.arrived], y);
                arrived = hop.times.arrived;
                canvas.text("small", LEFT, y + 38.0, &figures(hop));
                checks(&mut canvas, hop, y + 57.0);
            }
        }
        let left = report.hops.get(lane);
        scale.bar(&mut canvas, class(name), [arrived, left.map_or(end, |hop| hop.times.begun)], y);
        if let Some(hop) = left {
            scale.bar(&mut canvas, &format!("{} sends", class(name)), [hop.times.begun, stopped(hop)], y);
        }
    }
    foot(&mut canvas, report, command, height);
    canvas.finish()
}

/// The horizontal scale, in units for each second.
struct Scale(f64);

impl Scale {
    fn x(&self, time: Duration) -> f64 {
        LEFT + self.0 * time.as_secs_f64()
    }

    fn bar(&self, canvas: &mut Picture, class: &str, [from, to]: [Duration; 2], y: f64) {
        let (x, width) = (self.x(from), (self.x(to) - self.x(from)).max(0.0));
        canvas.bar(class, [x, y], [width, BAR]);
    }
}

/// When the guest stopped at the source: a downtime before the destination ran it.
fn stopped(hop: &Hop) -> Duration {
    hop.times.arrived.saturating_sub(hop.downtime()).max(hop.times.begun)
}

/// The style class of a monitor, by its name.
fn class(name: &str) -> &'static str {
    if name.starts_with("QEMU") { "qemu" } else { "minivmm" }
}

fn figures(hop: &Hop) -> String {
    let (total, sent) = (hop.total().as_secs_f64(), hop.sent_mib());
    let rounds = if hop.rounds() == 1 { "1 round".into() } else { format!("{} rounds", hop.rounds()) };
    let mut line =
        format!("moved in {total:.2} s: {rounds}, {sent:.1} MiB; downtime {} ms", hop.downtime().as_millis());
    if let Some([felt, usual]) = hop.gaps {
        // Writing to a string does not fail.
        let _ = write!(line, ", as felt {felt:.0} ms ({usual:.0} ms without migration)");
    }
    line
}

fn checks(canvas: &mut Picture, hop: &Hop, y: f64) {
    let mut spans = String::new();
    for (number, check) in hop.checks.iter().enumerate() {
        let (class, sign) = sign(check.verdict);
        let gap = if number == 0 { 0 } else { 14 };
        let _ = write!(spans, r#"<tspan class="{class}" dx="{gap}">{sign}</tspan> {}"#, escape(check.what));
    }
    canvas.put(&format!(r#"<text class="small" x="{LEFT}" y="{y:.1}">{spans}</text>"#));
}

fn sign(verdict: Verdict) -> (&'static str, char) {
    match verdict {
        Verdict::Holds => ("good", '✓'),
        Verdict::Known => ("known", '●'),
        Verdict::Fails => ("bad", '✗'),
        Verdict::Skipped => ("faint", '–'),
    }
}

/// Draws the axis, in seconds, with steps of 1, 2 or 5 times a power of ten.
fn axis(canvas: &mut Picture, scale: &Scale, end: Duration, y: f64) {
    let step = (0..).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    let step = step.take(15).find(|step| end.as_secs() / step < MARKS).unwrap_or(u64::MAX);
    canvas.put(&format!(r#"<path class="line" d="M{LEFT} {y:.1}H{:.1}"/>"#, WIDTH - MARGIN));
    canvas.text("small faint", MARGIN, y + 18.0, "seconds of work");
    for second in (0..=end.as_secs()).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let x = scale.x(Duration::from_secs(second));
        canvas.put(&format!(r#"<path class="line" d="M{x:.1} {TOP}V{:.1}" stroke-opacity="0.5"/>"#, y + 5.0));
        canvas.text("small faint middle", x, y + 18.0, &second.to_string());
    }
}

/// Draws the legend, the verdict and the command.
fn foot(canvas: &mut Picture, report: &DemoReport, command: &str, height: f64) {
    let y = height - 82.0;
    let legend = "Full: runs the guest. Pale: runs it, and sends its memory. Dashed: receives it. \
        Between two bars the guest stands still.";
    canvas.text("small faint", MARGIN, y, legend);
    let mut checks = report.hops.iter().flat_map(|hop| &hop.checks);
    if checks.any(|check| check.verdict == Verdict::Known) {
        let known =
            "● after its arrival in a QEMU Linux gives up the TSC as a clock, as after a migration from QEMU to QEMU";
        canvas.text("small faint", MARGIN, y + 18.0, known);
    }
    let class = if report.holds() { "name good" } else { "name bad" };
    canvas.text(class, MARGIN, height - 24.0, report.verdict());
    canvas.text("code faint end", WIDTH - MARGIN, height - 24.0, command);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Check, tests::hop};

    fn report(verdicts: Vec<Check>) -> DemoReport {
        let mut report = DemoReport::begin("Linux <6> & more".into(), "QEMU 10.0.2".into(), Duration::from_secs(4));
        report.hops.push(hop(verdicts));
        report
    }

    /// On 746 units: the migration begins at 3 s, the guest stops at 4.92 s, resumes at 5 s, and is verified at 9 s.
    #[test]
    fn bars_are_placed_by_their_times() {
        let picture = draw(&report(Vec::new()), "cargo demo", false);
        let bars = [
            r#"<rect class="qemu" x="150.0" y="88.0" width="248.7" height="20"/>"#,
            r#"<rect class="qemu sends" x="398.7" y="88.0" width="159.1" height="20"/>"#,
            r#"<rect class="minivmm takes" x="398.7" y="170.0" width="165.8" height="20"/>"#,
            r#"<rect class="minivmm" x="564.4" y="170.0" width="331.6" height="20"/>"#,
            r#"<path class="moves" d="M557.8 108L564.4 170"/>"#,
        ];
        for bar in bars {
            assert_eq!(picture.matches(bar).count(), 1, "{bar} in {picture}");
        }
        assert_eq!(picture.matches("<rect").count(), bars.len(), "a page and four bars: {picture}");
    }

    #[test]
    fn each_verdict_has_its_sign_and_names_are_no_markup() {
        let checks = vec![
            Check::new("memory", true, ""),
            Check::new("files", false, ""),
            Check::skipped("datagrams", ""),
            Check::known("kernel log", ""),
        ];
        let picture = draw(&report(checks), "cargo demo", true);
        let signs =
            [("good", '✓', "memory"), ("bad", '✗', "files"), ("faint", '–', "datagrams"), ("known", '●', "kernel log")];
        for (class, sign, what) in signs {
            let span = format!(r#">{sign}</tspan> {what}"#);
            assert!(picture.contains(&span) && picture.contains(&format!(r#"<tspan class="{class}""#)), "{picture}");
        }
        assert!(picture.contains("Linux &lt;6&gt; &amp; more; measured in an emulated host"), "{picture}");
        assert!(picture.contains("The migration is NOT sound."), "{picture}");
    }
}
