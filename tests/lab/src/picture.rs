//! Pictures for documents and reports: SVG that needs no font and no script, for light and dark pages.

/// Width of a picture, in SVG user units.
pub const WIDTH: f64 = 920.0;
/// Margin on the left and right of all elements.
pub const MARGIN: f64 = 24.0;

/// Colours are written as values instead of CSS variables, because programs other than browsers show the pictures, too.
const STYLE: &str = "\
text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
.head { font-size: 18px; font-weight: 600; } .name { font-weight: 600; }
.small { font-size: 12px; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
.code { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 12px; }
.page { fill: #ffffff; } .faint { fill: #656d76; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.line { stroke: #d0d7de; fill: none; } .moves { stroke: #1f2328; stroke-width: 1.5; }
.qemu { fill: #c2570c; stroke: #c2570c; } .minivmm { fill: #0f62c9; stroke: #0f62c9; } .limit { fill: #8c959f; stroke: #8c959f; }
.sends { fill-opacity: 0.45; } .takes { fill-opacity: 0; stroke-dasharray: 3 3; }
.good { fill: #1a7f37; } .known { fill: #9a6700; } .bad { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { stroke: #0d1117; } .page { fill: #0d1117; } .faint { fill: #8d96a0; }
  .line { stroke: #30363d; } .moves { stroke: #e6edf3; }
  .qemu { fill: #f0883e; stroke: #f0883e; } .minivmm { fill: #58a6ff; stroke: #58a6ff; } .limit { fill: #6e7681; stroke: #6e7681; }
  .good { fill: #3fb950; } .known { fill: #d29922; } .bad { fill: #f85149; }
}";

/// A picture that is being drawn; an element that is added later covers earlier ones.
#[derive(Debug)]
pub struct Picture(String);

impl Picture {
    /// An empty page of this height, with a title.
    pub fn new(title: &str, height: f64) -> Self {
        let mut picture = Self(String::new());
        picture.put(&format!(r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">"#));
        picture.put(&format!("<title>{}</title>\n<style>\n{STYLE}\n</style>", escape(title)));
        picture.put(&format!(r#"<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>"#));
        picture.text("head", MARGIN, 36.0, title);
        picture
    }

    /// Adds an element.
    pub fn put(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    /// Adds a line of text; `x` is its left end, unless the class aligns it otherwise.
    pub fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        self.put(&format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text)));
    }

    /// Adds a bar.
    pub fn bar(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        self.put(&format!(r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}"/>"#));
    }

    /// The SVG.
    pub fn finish(mut self) -> String {
        self.put("</svg>");
        self.0
    }
}

/// Text with the characters of markup escaped.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
