//! QEMU's comma-separated options: `[FIRST,]KEY=VALUE,…`, a comma in a value doubled.

use crate::cli::values::comma_separated;

/// The options of one argument, which are taken out one by one; what is left has no match.
#[derive(Clone, Debug)]
pub(super) struct Options(Vec<(String, String)>);

impl Options {
    /// Parses `text`; `first` is the key of a first part without `=`. Other parts without `=` are switches: `KEY` is on,
    /// `noKEY` off. The last value of a key counts.
    pub(super) fn parse(text: &str, first: &str) -> Self {
        let part = |(n, part): (usize, String)| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if n == 0 => (first.to_owned(), part),
            None => match part.strip_prefix("no") {
                Some(key) => (key.to_owned(), "off".to_owned()),
                None => (part, "on".to_owned()),
            },
        };
        let mut options: Vec<(String, String)> = Vec::new();
        for (key, value) in comma_separated(text).into_iter().enumerate().map(part) {
            options.retain(|(name, _)| *name != key);
            options.push((key, value));
        }
        Self(options)
    }

    /// Takes out the value of `key`.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(at).1)
    }

    /// Takes out `key` as a switch.
    pub(super) fn switch(&mut self, key: &str) -> Option<bool> {
        let on = match self.0.iter().find(|(name, _)| name == key)?.1.as_str() {
            "on" | "yes" | "true" | "y" => true,
            "off" | "no" | "false" | "n" => false,
            _ => return None,
        };
        self.take(key).map(|_| on)
    }

    /// Takes out `key` if its value is among `values`, which change nothing of the machine.
    pub(super) fn ignore(&mut self, key: &str, values: &[&str]) {
        self.0.retain(|(name, value)| name != key || !values.is_empty() && !values.contains(&value.as_str()));
    }

    /// Options that were not taken out, as they were written.
    pub(super) fn rest(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(key, value)| format!("{key}={value}"))
    }
}

/// Doubles the commas of an option's value.
pub(super) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}
