//! Picture of a plan: for each round what was sent and what is left, the downtime if the switch-over began then beside its
//! limit, and the throttle. SVG without fonts and scripts, for light and dark pages.

use std::time::Duration;

use vmstate::migrate::plan::PlannedRound;

use super::{Shown, report};
use crate::cli::drawing::{Axis, Canvas, LEFT, MARGIN, STYLE, WIDTH};
use crate::cli::units::{size, time};

const HEIGHT: f64 = 600.0;
/// Upper edges of the two diagrams, and the height of each.
const TOPS: [f64; 2] = [96.0, 326.0];
const HIGH: f64 = 180.0;
/// Most rounds for which points are drawn; with more there are only lines.
const POINTS: usize = 60;

/// Draws the plan.
pub(super) fn draw(shown: &Shown<'_>) -> String {
    let rounds = &shown.plan.rounds;
    let mut canvas = Canvas::new("A planned migration", HEIGHT, STYLE);
    let ends = if shown.plan.is_completed() { "completes" } else { "does not complete" };
    canvas.text("head", MARGIN, 36.0, &format!("A planned migration that {ends}"));
    canvas.text("faint", MARGIN, 60.0, &format!("{}; {}", report::guest(shown.scenario), report::wire(shown.scenario)));

    let limit = shown.scenario.parameters.downtime_limit;
    let sent = |round: &PlannedRound| round.round.bytes as f64;
    let left = |round: &PlannedRound| round.remaining_bytes as f64;
    let pause = |round: &PlannedRound| round.expected_downtime.as_secs_f64();

    let bytes = Axis::powers(8.0, rounds.iter().flat_map(|round| [sent(round), left(round)]), (TOPS[0], HIGH));
    canvas.legend(TOPS[0], &[("blue", "sent in the round"), ("orange", "left at its end")]);
    canvas.axis(&bytes, |value| size(value as u64));
    series(&mut canvas, "sent", rounds, &bytes, sent);
    series(&mut canvas, "left", rounds, &bytes, left);

    let times = Axis::powers(10.0, rounds.iter().map(pause).chain([limit.as_secs_f64()]), (TOPS[1], HIGH));
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
    canvas.axis(&times, |value| time(Duration::from_secs_f64(value)));
    canvas.limit(times.y(limit.as_secs_f64()));
    series(&mut canvas, "pause", rounds, &times, pause);

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
    canvas.finish()
}

fn step(rounds: usize) -> f64 {
    (WIDTH - MARGIN - LEFT) / rounds.max(1) as f64
}

/// Horizontal position of a round.
fn place(index: usize, rounds: usize) -> f64 {
    LEFT + step(rounds) * (index as f64 + 0.5)
}

fn series(
    canvas: &mut Canvas,
    class: &str,
    rounds: &[PlannedRound],
    axis: &Axis,
    value: impl Fn(&PlannedRound) -> f64,
) {
    let points = || rounds.iter().enumerate().map(|(index, round)| (place(index, rounds.len()), axis.y(value(round))));
    canvas.line(class, points());
    for (x, y) in points().take(if rounds.len() > POINTS { 0 } else { POINTS }) {
        canvas.put(&format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.5"/>"#));
    }
}
