//! The heat map of a report: a square for each part of guest memory, the darker the more often its pages were sent.

use serde_json::Value;

use super::shown::bytes;
use crate::cli::drawing::{Canvas, MARGIN, WIDTH};
use crate::memory::PAGE_SIZE;

/// Squares in a row.
const COLUMNS: usize = 64;
/// Upper limit of a square's average number of sends, and the label of its colour; the last one has no limit.
const STEPS: [(f64, &str); 6] = [
    (0.0, "never"),
    (1.0, "once"),
    (2.0, "up to 2 times"),
    (4.0, "up to 4"),
    (8.0, "up to 8"),
    (f64::INFINITY, "more often"),
];

/// Draws the heat map; `None` if nothing was counted.
pub(super) fn picture(heat: &Value, memory: Option<u64>) -> Option<String> {
    let (cell, pages) = (heat["cell-bytes"].as_u64()?, heat["pages"].as_array()?);
    if pages.is_empty() || cell == 0 {
        return None;
    }
    let side = (WIDTH - 2.0 * MARGIN) / COLUMNS as f64;
    let rows = pages.len().div_ceil(COLUMNS);
    let mut canvas = Canvas::new("How often each part of guest memory was sent", 44.0 + side * rows as f64, "");
    let step = (WIDTH - 2.0 * MARGIN) / STEPS.len() as f64;
    for (index, (_, name)) in STEPS.iter().enumerate() {
        let x = MARGIN + step * index as f64;
        canvas.bar(&format!("h{index}"), [x, 8.0], [12.0, 12.0], name);
        canvas.text("small", x + 18.0, 18.0, name);
    }
    // The last part may be shorter than the others.
    let end = memory.unwrap_or(u64::MAX);
    let times = |index: usize| {
        let from = cell.saturating_mul(index as u64);
        let long = end.saturating_sub(from).min(cell).max(PAGE_SIZE);
        pages[index].as_f64().unwrap_or(0.0) * PAGE_SIZE as f64 / long as f64
    };
    for row in 0..rows {
        let (mut first, last) = (row * COLUMNS, pages.len().min((row + 1) * COLUMNS));
        while first < last {
            // Equal neighbours are drawn as one element.
            let alike = (first..last).take_while(|&index| times(index) == times(first)).count().max(1);
            let (often, next) = (times(first), first + alike);
            let class = STEPS.iter().position(|(most, _)| often <= *most).unwrap_or(STEPS.len() - 1);
            let (from, to) = (cell.saturating_mul(first as u64), cell.saturating_mul(next as u64).min(end));
            let title = format!("{} to {}: each page sent {often:.1} times", bytes(from as f64), bytes(to as f64));
            let place = [MARGIN + side * (first % COLUMNS) as f64, 36.0 + side * row as f64];
            canvas.bar(&format!("h{class}"), place, [side * alike as f64, side], &title);
            first = next;
        }
    }
    Some(canvas.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn squares_show_how_often_their_pages_were_sent() {
        // Parts of 64 pages; the last one has 16.
        let picture =
            picture(&json!({"cell-bytes": 256 << 10, "pages": [64, 64, 0, 32, 192, 1024, 32]}), Some(1600 << 10));
        let picture = picture.unwrap();
        let check_cell = |class: &str, title: &str| {
            let element =
                picture.lines().find(|line| line.contains(title)).unwrap_or_else(|| panic!("{title}: {picture}"));
            assert!(element.contains(&format!("class=\"{class}\"")), "{element}");
        };
        check_cell("h1", "0 B to 512 KiB: each page sent 1.0 times");
        check_cell("h0", "512 KiB to 768 KiB: each page sent 0.0 times");
        check_cell("h1", "768 KiB to 1 MiB: each page sent 0.5 times");
        check_cell("h3", "1 MiB to 1.25 MiB: each page sent 3.0 times");
        check_cell("h5", "each page sent 16.0 times");
        check_cell("h2", "1.5 MiB to 1.56 MiB: each page sent 2.0 times");
        assert_eq!(super::picture(&json!({"cell-bytes": 0, "pages": []}), None), None);
        assert_eq!(super::picture(&json!(null), None), None);
    }
}
