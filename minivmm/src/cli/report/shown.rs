//! Numbers of the JSON, with their exact values and as text for a person.

use std::time::Duration;

use serde_json::Value;

use crate::cli::drawing::escape;
use crate::cli::units::{rate, size, time};

/// Formats a number for a person.
pub(super) type Shown = fn(f64) -> String;

/// Renders the number at the path `at` of the JSON, if there is one.
pub(super) fn number(data: &Value, at: &str, shown: Shown) -> Option<String> {
    let value = data.pointer(at)?.as_number()?;
    Some(format!("<data value=\"{value}\" title=\"{at}\">{}</data>", escape(shown(value.as_f64()?))))
}

pub(super) fn bytes(value: f64) -> String {
    size(value as u64)
}

pub(super) fn bytes_per_second(value: f64) -> String {
    rate(value as u64)
}

pub(super) fn milliseconds(value: f64) -> String {
    elapsed(value * 1e3)
}

/// Formats microseconds.
pub(super) fn elapsed(value: f64) -> String {
    time(Duration::from_secs_f64(value.max(0.0) / 1e6))
}

pub(super) fn nanoseconds(value: f64) -> String {
    elapsed(value / 1e3)
}

pub(super) fn plain(value: f64) -> String {
    value.to_string()
}
