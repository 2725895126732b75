//! Options for the parameters of a migration: one for each that vmstate lists in [`PARAMETERS`], as `--downtime-limit 200ms`.
//!
//! Name, range and meaning come from the list. An option takes units, as `200ms`, and its help shows minivmm's default.

use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use vmstate::migrate::{PARAMETERS, Parameter, ParameterUnit, ParameterValue, Parameters};

use crate::cli::{UsageError, values};
use crate::vm::default_parameters;

/// Parameters of sending pages. All others are for the [policy](vmstate::migrate::policy).
const SENDING: &[&str] = &[
    "multifd",
    "multifd-channels",
    "multifd-compression",
    "multifd-zstd-level",
    "direct-io",
    "xbzrle",
    "xbzrle-cache-size",
];

/// Group of the options that switch page channels on, one of which compression needs.
const CHANNELS: &str = "page-channels";

/// Options of the policy: when to switch over, throttle and give up.
pub type PolicyArgs = ParameterArgs<false>;

/// Options of sending pages: one for each parameter, and options that set two parameters at once.
pub type SendingArgs = ParameterArgs<true>;

/// Parameters of one of the two groups that were given, with their new values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterArgs<const SENDS: bool>(Changes);

type Changes = Vec<(&'static str, ParameterValue)>;

impl<const SENDS: bool> ParameterArgs<SENDS> {
    fn options() -> impl Iterator<Item = Arg> {
        let parameters = PARAMETERS.iter().filter(|parameter| SENDING.contains(&parameter.name) == SENDS);
        // `--xbzrle` is one of the options that set two parameters.
        let parameters = parameters.filter(|parameter| parameter.name != "xbzrle").map(option);
        parameters.chain(SENDS.then(pairs).into_iter().flatten())
    }

    /// The parameters that were given, with their new values.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&'static str, ParameterValue)> + '_ {
        self.0.iter().cloned()
    }

    /// Applies the options to `parameters`.
    ///
    /// # Errors
    /// A parameter does not fit the others; the error names it.
    pub fn of(&self, parameters: Parameters) -> Result<Parameters, UsageError> {
        parameters.changed(self.changes()).map_err(|error| UsageError(error.message().to_owned()))
    }
}

impl<const SENDS: bool> Args for ParameterArgs<SENDS> {
    fn augment_args(command: Command) -> Command {
        let command = command.args(Self::options());
        if SENDS {
            command.group(ArgGroup::new(CHANNELS).args(["channels", "multifd"]).multiple(true))
        } else {
            command
        }
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const SENDS: bool> FromArgMatches for ParameterArgs<SENDS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut changes = Changes::new();
        for option in Self::options() {
            for change in matches.get_one::<Changes>(option.get_id().as_str()).into_iter().flatten() {
                if changes.iter().any(|(name, _)| *name == change.0) {
                    let why = format!("two options set the parameter '{}'; leave one out", change.0);
                    return Err(clap::Error::raw(ErrorKind::ArgumentConflict, why));
                }
                changes.push(change.clone());
            }
        }
        Ok(Self(changes))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Options that set two parameters.
fn pairs() -> [Arg; 3] {
    let pair = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    [
        pair("channels", "N")
            .help("Send pages on N channels: --multifd --multifd-channels N")
            .allow_negative_numbers(true)
            .value_parser(channels),
        pair("compress", "none|zstd[:LEVEL]")
            .help("Compression of pages on the channels: --multifd-compression and --multifd-zstd-level")
            .requires(CHANNELS)
            .value_parser(compression),
        pair("xbzrle", "on|off|SIZE")
            .help("Send only the changed bytes of a page that was sent before; with SIZE: --xbzrle-cache-size SIZE [default: off]")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("on")
            .value_parser(xbzrle),
    ]
}

fn channels(text: &str) -> Result<Changes, String> {
    Ok(vec![change("multifd", "on")?, change("multifd-channels", text)?])
}

fn compression(text: &str) -> Result<Changes, String> {
    let changes = match text.split_once(':') {
        None if text == "zstd" => compression("zstd:1"),
        None => change("multifd-compression", text).map(|method| vec![method]),
        Some(("zstd", level)) => change("multifd-zstd-level", level)
            .and_then(|level| Ok(vec![change("multifd-compression", "zstd")?, level])),
        Some(_) => Err(String::new()),
    };
    changes.map_err(|_| "expected none, zstd or zstd:LEVEL, with a level of 1 to 20".into())
}

fn xbzrle(text: &str) -> Result<Changes, String> {
    match values::switch(text) {
        Ok(_) => Ok(vec![change("xbzrle", text)?]),
        Err(_) => Ok(vec![change("xbzrle", "on")?, change("xbzrle-cache-size", text)?]),
    }
}

fn option(parameter: &'static Parameter) -> Arg {
    let default = shown(&parameter.of(&default_parameters()), parameter.unit);
    let mut help = format!("{} [{}; default: {default}]", parameter.meaning, possible(parameter.unit));
    if let Some(first) = help.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let option = Arg::new(parameter.name)
        .long(parameter.name)
        .help(help)
        .allow_negative_numbers(true)
        .value_parser(move |text: &str| change(parameter.name, text).map(|change| vec![change]));
    match parameter.unit {
        ParameterUnit::Milliseconds(_) => option.value_name("TIME"),
        ParameterUnit::BytesPerSecond | ParameterUnit::CacheBytes => option.value_name("SIZE"),
        ParameterUnit::Percent(_) => option.value_name("PERCENT"),
        ParameterUnit::Count | ParameterUnit::Between(..) => option.value_name("N"),
        ParameterUnit::Flag | ParameterUnit::Switch => {
            option.value_name("on|off").num_args(0..=1).require_equals(true).default_missing_value("on")
        }
        ParameterUnit::Word(_) => option.value_name("WORD"),
    }
}

/// Values of a unit that a user may write.
fn possible(unit: ParameterUnit) -> String {
    match unit {
        ParameterUnit::Milliseconds(most) => {
            format!("a time of 0 to {}, as 300ms, 2s, 5min or 1h", time_shown(Duration::from_millis(most)))
        }
        ParameterUnit::BytesPerSecond => "bytes a second, or K, M or G of them, as 50M".into(),
        ParameterUnit::Percent(most) => format!("percent, 1 to {most}"),
        ParameterUnit::Count => format!("a number, 0 to {}", u32::MAX),
        ParameterUnit::Between(least, most) => format!("a number, {least} to {most}"),
        ParameterUnit::CacheBytes => "bytes, or K, M or G of them, as 64M: a power of two of at least 4K".into(),
        ParameterUnit::Flag | ParameterUnit::Switch => "on or off".into(),
        ParameterUnit::Word(words) => words.join(" or "),
    }
}

fn change(name: &str, text: &str) -> Result<(&'static str, ParameterValue), String> {
    let parameter = Parameter::named(name).ok_or_else(|| format!("there is no parameter '{name}'"))?;
    let value = match parameter.unit {
        ParameterUnit::Milliseconds(_) => values::time(text).map(ParameterValue::Time),
        ParameterUnit::BytesPerSecond => values::size(text.trim_end_matches("/s")).ok().map(ParameterValue::Number),
        ParameterUnit::CacheBytes => values::size(text).ok().map(ParameterValue::Number),
        ParameterUnit::Percent(_) => values::number(text.trim_end_matches('%')).map(ParameterValue::Number),
        ParameterUnit::Count | ParameterUnit::Between(..) => values::number(text).map(ParameterValue::Number),
        ParameterUnit::Flag | ParameterUnit::Switch => values::switch(text).ok().map(ParameterValue::Flag),
        ParameterUnit::Word(_) => Some(ParameterValue::Word(text.to_owned().into())),
    };
    match value.filter(|value| parameter.accepts(value)) {
        Some(value) => Ok((parameter.name, value)),
        None => Err(format!("expected {}", possible(parameter.unit))),
    }
}

fn shown(value: &ParameterValue, unit: ParameterUnit) -> String {
    match (value, unit) {
        (ParameterValue::Time(time), _) => time_shown(*time),
        (&ParameterValue::Number(bytes), ParameterUnit::BytesPerSecond | ParameterUnit::CacheBytes) => {
            values::size_shown(bytes)
        }
        (ParameterValue::Number(number), _) => number.to_string(),
        (ParameterValue::Flag(on), _) => if *on { "on" } else { "off" }.into(),
        (ParameterValue::Word(word), _) => word.to_string(),
    }
}

fn time_shown(time: Duration) -> String {
    match time.as_millis() {
        ms if ms > 0 && ms % 1000 == 0 => format!("{}s", ms / 1000),
        0 => "0".into(),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests;
