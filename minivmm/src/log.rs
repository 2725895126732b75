//! `--log`: writes events to standard error, one a line, as text or as JSON. An event has its time, level and text, and the
//! fields of its spans: side and phase of the migration, round, section.

use std::fmt::{self, Write};
use std::str::FromStr;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use vmstate::error::Printable;

use crate::error::{event, print_message, print_messages_as_json};

/// Level and format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    level: LevelFilter,
    json: bool,
}

impl FromStr for Log {
    type Err = String;

    /// Reads `LEVEL`, `json` or `json:LEVEL`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (level, json) = match text.split_once(':') {
            Some(("json", level)) => (level, true),
            None if text == "json" => ("info", true),
            _ => (text, false),
        };
        let level = match level {
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => return Err("write error, warn, info, debug or trace, or json:LEVEL".into()),
        };
        Ok(Self { level, json })
    }
}

impl Log {
    /// Begins logging, for the whole process and until it ends.
    pub fn begin(self) {
        if self.json {
            print_messages_as_json();
        }
        // Fails only if there is a subscriber already, which is kept then.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(self));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.0.extend(of_span.0.clone());
            }
        }
        event.record(&mut fields);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        self.write(&level, event.metadata().target(), fields.0);
    }
}

impl Log {
    #[expect(clippy::print_stderr, reason = "each line is whole, and a program reads it")]
    fn write(self, level: &str, target: &str, mut fields: Map<String, Value>) {
        let text = fields.shift_remove("message").unwrap_or_default();
        if self.json {
            eprintln!("{}", line(level, text, target, fields));
            return;
        }
        let mut sentence = format!("{level}: {}", text.as_str().unwrap_or_default());
        for (name, value) in &fields {
            let _ = match value {
                Value::String(text) => write!(sentence, " {name}={text}"),
                other => write!(sentence, " {name}={other}"),
            };
        }
        print_message(sentence);
    }
}

/// Formats one event. Its fields cannot hide time, level, text or target.
fn line(level: &str, text: Value, target: &str, fields: Map<String, Value>) -> Value {
    let mut line = event(level, text, target);
    if let Some(line) = line.as_object_mut() {
        for (name, value) in fields {
            line.entry(name).or_insert(value);
        }
    }
    line
}

/// Fields of a span or an event, in printable text.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().into(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Printable(format_args!("{value:?}")).to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Printable(value).to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}
