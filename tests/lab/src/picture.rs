//! Pictures for documents and reports: SVG that needs no font and no script, for light and dark pages.

/// Width of a picture, in the units of its places and lengths.
pub const WIDTH: f64 = 920.0;
/// Left and right of everything.
pub const MARGIN: f64 = 24.0;

/// Colours in place of variables: not only browsers show the pictures.
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

/// A picture that is being drawn: what comes later lies above.
#[derive(Debug)]
pub struct Picture(String);

impl Picture {
    /// An empty page of that height, with its title.
    pub fn new(title: &str, height: f64) -> Self {
        let mut picture = Self(String::new());
        picture.put(&format!(r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">"#));
        picture.put(&format!("<title>{}</title>\n<style>\n{STYLE}\n</style>", escape(title)));
        picture.put(&format!(r#"<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>"#));
        picture.text("head", MARGIN, 36.0, title);
        picture
    }

    /// An element.
    pub fn put(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    /// A line of text, with its left end there, or what the class says.
    pub fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        self.put(&format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text)));
    }

    /// A bar.
    pub fn bar(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        self.put(&format!(r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}"/>"#));
    }

    /// The SVG.
    pub fn finish(mut self) -> String {
        self.put("</svg>");
        self.0
    }
}

/// Text that is no markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
