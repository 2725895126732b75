//! A plan as a picture: round by round what was sent and what is left, and the pause that would follow beside its limit, with the
//! throttle. SVG that needs no font and no script, for light and dark pages.

use std::time::Duration;

use vmstate::migrate::plan::PlannedRound;

use super::{Shown, report};

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 600.0;
const MARGIN: f64 = 24.0;
const LEFT: f64 = 110.0;
/// Upper edges of both parts, and how high each is.
const TOPS: [f64; 2] = [96.0, 326.0];
const HIGH: f64 = 180.0;
/// With more rounds than this no points are drawn, only lines.
const POINTS: usize = 60;

/// Colours in place of variables: not only browsers show the picture.
const STYLE: &str = "\
text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
.head { font-size: 18px; font-weight: 600; } .name { font-weight: 600; } .small { font-size: 12px; }
.page { fill: #ffffff; } .faint { fill: #656d76; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.line { stroke: #d0d7de; fill: none; } .limit { stroke: #cf222e; stroke-dasharray: 6 4; fill: none; } .red { fill: #cf222e; }
.sent { stroke: #0f62c9; } .left { stroke: #c2570c; } .pause { stroke: #1a7f37; } polyline { fill: none; stroke-width: 2; }
circle.sent { fill: #0f62c9; } circle.left { fill: #c2570c; } circle.pause { fill: #1a7f37; }
.throttle { fill: #8250df; fill-opacity: 0.18; } .violet { fill: #8250df; } .blue { fill: #0f62c9; } .orange { fill: #c2570c; }
.green { fill: #1a7f37; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .page { fill: #0d1117; } .faint { fill: #8d96a0; } .line { stroke: #30363d; }
  .sent { stroke: #58a6ff; } .left { stroke: #f0883e; } .pause { stroke: #3fb950; } .limit { stroke: #f85149; } .red { fill: #f85149; }
  circle.sent { fill: #58a6ff; } circle.left { fill: #f0883e; } circle.pause { fill: #3fb950; }
  .violet { fill: #a371f7; } .blue { fill: #58a6ff; } .orange { fill: #f0883e; } .green { fill: #3fb950; }
}";

/// Draws the plan.
pub(super) fn draw(shown: &Shown<'_>) -> String {
    let rounds = &shown.plan.rounds;
    let mut canvas = Canvas(String::new());
    canvas.put(&format!(r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#));
    canvas.put(&format!("<title>A planned migration</title>\n<style>\n{STYLE}\n</style>"));
    canvas.put(&format!(r#"<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>"#));
    let ends = if shown.plan.is_completed() { "completes" } else { "does not complete" };
    canvas.text("head", MARGIN, 36.0, &format!("A planned migration that {ends}"));
    canvas.text("faint", MARGIN, 60.0, &format!("{}; {}", report::guest(shown.scenario), report::wire(shown.scenario)));

    let limit = shown.scenario.parameters.downtime_limit;
    let sent = |round: &PlannedRound| round.round.bytes as f64;
    let left = |round: &PlannedRound| round.remaining_bytes as f64;
    let pause = |round: &PlannedRound| round.expected_downtime.as_secs_f64();

    let bytes = Axis::over(8.0, rounds.iter().flat_map(|round| [sent(round), left(round)]), TOPS[0]);
    canvas.legend(TOPS[0], &[("blue", "sent in the round"), ("orange", "left at its end")]);
    canvas.axis(&bytes, |value| report::size(value as u64));
    canvas.series("sent", rounds, &bytes, sent);
    canvas.series("left", rounds, &bytes, left);

    let times = Axis::over(10.0, rounds.iter().map(pause).chain([limit.as_secs_f64()]), TOPS[1]);
    canvas.legend(
        TOPS[1],
        &[("green", "pause, if it began then"), ("red", "its limit"), ("violet", "throttle, 0 to 100 %")],
    );
    for (index, round) in rounds.iter().enumerate() {
        let high = HIGH * f64::from(round.throttle_percent) / 100.0;
        if high > 0.0 {
            let (x, wide) = (place(index, rounds.len()) - step(rounds.len()) / 2.0, step(rounds.len()));
            let y = TOPS[1] + HIGH - high;
            canvas.put(&format!(
                r#"<rect class="throttle" x="{x:.1}" y="{y:.1}" width="{wide:.1}" height="{high:.1}"/>"#
            ));
        }
    }
    canvas.axis(&times, |value| report::time(Duration::from_secs_f64(value)));
    let y = times.y(limit.as_secs_f64());
    canvas.put(&format!(r#"<path class="limit" d="M{LEFT} {y:.1}H{}"/>"#, WIDTH - MARGIN));
    canvas.series("pause", rounds, &times, pause);

    let every = rounds.len().div_ceil(20).max(1);
    for index in (0..rounds.len()).step_by(every) {
        canvas.text("small faint middle", place(index, rounds.len()), TOPS[1] + HIGH + 18.0, &(index + 1).to_string());
    }
    canvas.text("small faint end", LEFT - 12.0, TOPS[1] + HIGH + 18.0, "round");
    let (verdict, enough) = report::verdict(shown);
    canvas.text("name", MARGIN, HEIGHT - 48.0, &verdict);
    if !enough.is_empty() {
        canvas.text("faint", MARGIN, HEIGHT - 24.0, &format!("Enough would be: {}", enough.join("; or ")));
    }
    canvas.put("</svg>");
    canvas.0
}

fn step(rounds: usize) -> f64 {
    (WIDTH - MARGIN - LEFT) / rounds.max(1) as f64
}

/// Where a round stands.
fn place(index: usize, rounds: usize) -> f64 {
    LEFT + step(rounds) * (index as f64 + 0.5)
}

/// A logarithmic scale, from a power of its base to a power of it.
struct Axis {
    base: f64,
    least: i32,
    most: i32,
    top: f64,
}

impl Axis {
    /// One that has room for all values but zeros.
    #[expect(clippy::cast_possible_truncation, reason = "an exponent")]
    fn over(base: f64, values: impl Iterator<Item = f64>, top: f64) -> Self {
        let (least, most) = values
            .filter(|&value| value > 0.0)
            .map(|value| value.log(base))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
        if least > most {
            return Self { base, least: 0, most: 1, top };
        }
        let least = least.floor() as i32;
        Self { base, least, most: (most.ceil() as i32).max(least + 1), top }
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value.log(self.base) - f64::from(self.least)) / f64::from(self.most - self.least);
        // Nothing is at the lower edge.
        self.top + HIGH * (1.0 - share.clamp(0.0, 1.0))
    }
}

/// The SVG so far.
struct Canvas(String);

impl Canvas {
    fn put(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.put(&format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#));
    }

    fn legend(&mut self, top: f64, names: &[(&str, &str)]) {
        let spans: Vec<_> =
            names.iter().map(|(class, name)| format!(r#"<tspan class="{class}" dx="16">{name}</tspan>"#)).collect();
        self.put(&format!(
            r#"<text class="small" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 16.0,
            top - 10.0,
            spans.concat()
        ));
    }

    /// Lines at powers of the base.
    fn axis(&mut self, axis: &Axis, name: impl Fn(f64) -> String) {
        let every = (axis.most - axis.least) / 6 + 1;
        for power in axis.least..=axis.most {
            if (power - axis.least) % every == 0 {
                let value = axis.base.powi(power);
                let y = axis.y(value);
                self.put(&format!(r#"<path class="line" d="M{LEFT} {y:.1}H{}"/>"#, WIDTH - MARGIN));
                self.text("small faint end", LEFT - 12.0, y + 4.0, &name(value));
            }
        }
    }

    fn series(&mut self, class: &str, rounds: &[PlannedRound], axis: &Axis, value: impl Fn(&PlannedRound) -> f64) {
        let points =
            || rounds.iter().enumerate().map(|(index, round)| (place(index, rounds.len()), axis.y(value(round))));
        let line: Vec<_> = points().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(&format!(r#"<polyline class="{class}" points="{}"/>"#, line.join(" ")));
        for (x, y) in points().take(if rounds.len() > POINTS { 0 } else { POINTS }) {
            self.put(&format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.5"/>"#));
        }
    }
}
