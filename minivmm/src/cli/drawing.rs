//! Building blocks of the pictures of `plan` and `report`: SVG without fonts and scripts, for light and dark pages.

use std::fmt::Display;

/// Style with literal colours: viewers other than browsers may not support CSS variables.
pub(super) const STYLE: &str = "\
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

pub(super) const WIDTH: f64 = 920.0;
pub(super) const MARGIN: f64 = 24.0;
/// Left edge of a diagram, right of its axis labels.
pub(super) const LEFT: f64 = 110.0;

/// Escapes text for SVG and HTML, also within an attribute.
pub(super) fn escape(text: impl Display) -> String {
    text.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// Distance of an axis's lines.
enum Scale {
    /// Lines at powers of this base.
    Powers(f64),
    /// Lines at multiples of this step.
    Steps(f64),
}

/// Vertical axis of a diagram.
pub(super) struct Axis {
    scale: Scale,
    least: i32,
    most: i32,
    top: f64,
    high: f64,
}

impl Axis {
    /// Axis of powers of `base` that has room for all values except zeros; `top` is its upper edge.
    #[expect(clippy::cast_possible_truncation, reason = "an exponent")]
    pub(super) fn powers(base: f64, values: impl Iterator<Item = f64>, (top, high): (f64, f64)) -> Self {
        let (least, most) = values
            .filter(|&value| value > 0.0)
            .map(|value| value.log(base))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
        let scale = Scale::Powers(base);
        if least > most {
            return Self { scale, least: 0, most: 1, top, high };
        }
        let least = least.floor() as i32;
        Self { scale, least, most: (most.ceil() as i32).max(least + 1), top, high }
    }

    /// Axis from 0 with room for all values, in 3 to 6 steps of a power of `base` times a power of two.
    #[expect(clippy::cast_possible_truncation, reason = "a handful of steps")]
    pub(super) fn steps(base: f64, values: impl Iterator<Item = f64>, (top, high): (f64, f64)) -> Self {
        let most = values.fold(0.0, f64::max);
        let mut step = if most > 0.0 { base.powf(most.log(base).floor()) } else { 1.0 };
        while most / step < 3.0 && most > 0.0 {
            step /= 2.0;
        }
        while most / step > 6.0 {
            step *= 2.0;
        }
        Self { scale: Scale::Steps(step), least: 0, most: ((most / step).ceil() as i32).max(1), top, high }
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Powers(base) => value.log(base),
            Scale::Steps(step) => value / step,
        };
        let share = (place - f64::from(self.least)) / f64::from(self.most - self.least);
        // Values below the lowest line are drawn at the lower edge.
        self.top + self.high * (1.0 - share.clamp(0.0, 1.0))
    }

    /// Position of 0 and of values below the lowest line.
    pub(super) fn bottom(&self) -> f64 {
        self.top + self.high
    }

    fn value(&self, line: i32) -> f64 {
        match self.scale {
            Scale::Powers(base) => base.powi(line),
            Scale::Steps(step) => step * f64::from(line),
        }
    }
}

/// Text of an SVG that is being drawn.
pub(super) struct Canvas(String);

impl Canvas {
    /// Begins a picture with its title. A picture in a file of its own brings its `style`; one within a page uses the page's.
    pub(super) fn new(title: &str, height: f64, style: &str) -> Self {
        let mut canvas = Self(String::new());
        canvas.put(&format!(r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">"#));
        canvas.put(&format!("<title>{}</title>", escape(title)));
        if !style.is_empty() {
            canvas.put(&format!("<style>\n{style}\n</style>"));
        }
        canvas.put(&format!(r#"<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>"#));
        canvas
    }

    pub(super) fn put(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    pub(super) fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        self.put(&format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text)));
    }

    /// Draws a bar with the tooltip `title`.
    pub(super) fn bar(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2], title: &str) {
        self.put(&format!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"><title>{}</title></rect>"#,
            escape(title)
        ));
    }

    /// Draws a legend of the colours above the diagram's edge `top`.
    pub(super) fn legend(&mut self, top: f64, names: &[(&str, &str)]) {
        let spans: Vec<_> =
            names.iter().map(|(class, name)| format!(r#"<tspan class="{class}" dx="16">{name}</tspan>"#)).collect();
        let (x, y) = (LEFT - 16.0, top - 10.0);
        self.put(&format!(r#"<text class="small" x="{x:.1}" y="{y:.1}">{}</text>"#, spans.concat()));
    }

    /// Draws the lines of an axis, with their values.
    pub(super) fn axis(&mut self, axis: &Axis, name: impl Fn(f64) -> String) {
        let every = (axis.most - axis.least) / 6 + 1;
        for line in (axis.least..=axis.most).filter(|line| (line - axis.least) % every == 0) {
            let value = axis.value(line);
            let y = axis.y(value);
            self.put(&format!(r#"<path class="line" d="M{LEFT} {y:.1}H{}"/>"#, WIDTH - MARGIN));
            self.text("small faint end", LEFT - 12.0, y + 4.0, &name(value));
        }
    }

    /// Draws a limit across the diagram.
    pub(super) fn limit(&mut self, y: f64) {
        self.put(&format!(r#"<path class="limit" d="M{LEFT} {y:.1}H{}"/>"#, WIDTH - MARGIN));
    }

    /// Draws a line through points.
    pub(super) fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let points: Vec<_> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(&format!(r#"<polyline class="{class}" points="{}"/>"#, points.join(" ")));
    }

    pub(super) fn finish(mut self) -> String {
        self.put("</svg>");
        self.0
    }
}
