//! A bar chart of the figures for one kind of data: a bar for each variant, as long as its median speed.

use vmstate_lab::picture::{MARGIN, Picture, WIDTH};

use crate::case::{Encoding, Limit, Sender};
use crate::measured::{Group, Row};

/// Left end of the bars.
const LEFT: f64 = 205.0;
/// Length of the longest bar.
const LONGEST: f64 = 310.0;
/// Top of the first group.
const TOP: f64 = 84.0;
const BAR: f64 = 16.0;
/// Distance from bar to bar.
const STEP: f64 = 22.0;
/// Height of a group's name, and of the space after a group.
const NAME: f64 = 24.0;
const ROOM: f64 = 16.0;
const FOOT: f64 = 20.0;

/// Draws groups of the same data. `place` says where they were measured.
pub(crate) fn draw(groups: &[Group], place: &str, command: &str) -> String {
    let rows: usize = groups.iter().map(|group| group.results.len()).sum();
    let height = TOP + rows as f64 * STEP + groups.len() as f64 * (NAME + ROOM) + FOOT;
    let first = groups.first();
    let title = first.map_or_else(String::new, |group| format!("Moving {} MiB of {} memory", group.mib, group.data));
    let mut picture = Picture::new(&title, height);
    picture.text("small faint", MARGIN, 60.0, place);
    let mut y = TOP;
    for group in groups {
        picture.text("name", MARGIN, y + 12.0, &group.transport.to_string());
        y += NAME;
        let rows: Vec<Row> = group.rows().collect();
        let longest = rows.iter().filter(|row| is_to_scale(row)).map(|row| row.median).fold(0.0, f64::max);
        for row in &rows {
            bar(&mut picture, row, longest, y);
            y += STEP;
        }
        y += ROOM;
    }
    picture.text("code faint end", WIDTH - MARGIN, height - 16.0, command);
    picture.finish()
}

/// Whether the row's bar is drawn to scale: asking the host for touched pages takes next to no time, and would make all
/// other bars invisible.
fn is_to_scale(row: &Row) -> bool {
    row.variant.sender != Sender::Limit(Limit::Ask)
}

fn bar(picture: &mut Picture, row: &Row, longest: f64, y: f64) {
    let class = match row.variant.sender {
        Sender::Limit(_) => "limit",
        Sender::Minivmm => "minivmm",
        Sender::Qemu => "qemu",
    };
    picture.text("small", MARGIN, y + 12.0, &row.variant.to_string());
    let width = if is_to_scale(row) { LONGEST * row.median / longest } else { LONGEST };
    picture.bar(class, [LEFT, y], [width, BAR]);
    let mut figures = if is_to_scale(row) { format!("{:.0} MB/s", row.median) } else { "not to scale".into() };
    if let Some(ratios) = row.to_qemu {
        figures += &format!(", {:.2} × QEMU at {:.2} of its CPU", ratios.speed, ratios.cpu);
        if row.variant.encoding != Encoding::Plain {
            figures += &format!(", {:.2} of its bytes", ratios.sent);
        }
    }
    picture.text("small", LEFT + width + 8.0, y + 12.0, &figures);
}
