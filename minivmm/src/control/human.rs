//! `human-monitor-command`: each line of QEMU's monitor for people is carried out as the matching QMP command, and answered in
//! the format of QEMU's monitor (`monitor/hmp.c`, `migration/migration-hmp-cmds.c`).

use serde_json::{Map, Value, json};
use vmstate::migrate::{Parameter, ParameterUnit};

use crate::config::size;
use crate::control::commands::{Arguments, Band, Failure, answer};
use crate::control::descriptors::Caller;
use crate::control::human_info as info;
use crate::control::kind::{Kind, needed, optional};
use crate::control::table::Command;
use crate::control::{announce, bitmap_mapping};

/// A command of QEMU's monitor.
struct Line {
    /// Names of the command, as QEMU's help shows them.
    names: &'static str,
    /// Arguments of the command, as QEMU's help shows them.
    takes: &'static str,
    about: &'static str,
    carry_out: fn(&Caller, &[&str]) -> Result<String, CommandError>,
}

/// Why a command is not carried out.
enum CommandError {
    /// The line lacks an argument.
    Lacks,
    /// The line has one argument too many.
    TooLong,
    /// An argument is not one of these.
    Expected(&'static str),
    /// The matching QMP command failed.
    Refused(Failure),
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

/// Makes a command without arguments.
macro_rules! plain {
    ($names:expr, $about:expr, $command:expr) => {
        line($names, "", $about, |caller, _| run(caller, $command, json!({})))
    };
}

const LINES: &[Line] = &[
    line("announce_self", "", "announce the guest to the network", |caller, _| {
        run(caller, "announce-self", announce::defaults())
    }),
    plain!("cont|c", "resume the guest", "cont"),
    line("help|?", "[cmd]", "show the help", |_, words| Ok(help(words.first().copied()))),
    line("info", "[subcommand]", "show various information about the system state", |caller, words| match words {
        [] => Ok(info::help()),
        [what, ..] => info::show(caller, what).map_err(CommandError::Refused).and_then(|shown| match shown {
            Some(shown) if words.len() == 1 => Ok(shown),
            Some(_) => Err(CommandError::TooLong),
            None => Ok(unknown(&format!("info {what}"))),
        }),
    }),
    line(
        "migrate",
        "[-d] [-b] [-r] uri",
        "migrate to URI (always in the background, as with -d; -b without shared storage, with a copy of the disks, as in QEMU up to 9.0; -r \
         resumes a paused postcopy migration)",
        |caller, words| {
            let (detached, words) = option("-d", words);
            let (copies_disks, words) = option("-b", words);
            let (resumes, words) = option("-r", words);
            let [uri] = exactly(words)?;
            run(caller, "migrate", json!({"uri": uri, "copy-disk": copies_disks, "resume": resumes}))?;
            Ok(if detached { "" } else { "terminal does not allow synchronous migration, continuing detached\r\n" }
                .into())
        },
    ),
    plain!("migrate_cancel", "cancel the current VM migration", "migrate_cancel"),
    line("migrate_continue", "state", "continue migration from the given paused state", |caller, words| {
        let [state] = exactly(words)?;
        run(caller, "migrate-continue", json!({"state": state}))
    }),
    line("migrate_incoming", "uri", "continue an incoming migration from an -incoming defer", |caller, words| {
        let [uri] = exactly(words)?;
        run(caller, "migrate-incoming", json!({"uri": uri}))
    }),
    plain!(
        "migrate_start_postcopy",
        "Followup to a migration command to switch the migration to postcopy mode.",
        "migrate-start-postcopy"
    ),
    plain!("migrate_pause", "pause a migration, in postcopy", "migrate-pause"),
    line("migrate_recover", "uri", "continue a paused incoming postcopy migration", |caller, words| {
        let [uri] = exactly(words)?;
        run(caller, "migrate-recover", json!({"uri": uri}))
    }),
    line(
        "migrate_set_capability",
        "capability state",
        "enable/disable the usage of a capability for migration",
        |caller, words| {
            let [name, state] = exactly(words)?;
            let state = match state {
                "on" => true,
                "off" => false,
                _ => return Err(CommandError::Expected("'on' or 'off'")),
            };
            if !crate::control::absent::capability_names().any(|known| known == name) {
                return Err(Failure::generic(format!("invalid parameter value: {name}")).into());
            }
            run(caller, "migrate-set-capabilities", json!({"capabilities": [{"capability": name, "state": state}]}))
        },
    ),
    line("migrate_set_parameter", "parameter value", "set the parameter for migration", |caller, words| {
        let [name, value] = exactly(words)?;
        let mut change = Map::new();
        change.insert(name.into(), parameter(name, value)?);
        run(caller, "migrate-set-parameters", change.into())
    }),
    plain!("quit|q", "quit the emulator", "quit"),
    plain!("stop|s", "stop emulation", "stop"),
    plain!("system_powerdown", "send system power down event", "system_powerdown"),
    plain!("system_reset", "reset the system", "system_reset"),
];

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new(
            "human-monitor-command",
            "one line of QEMU's monitor for people, as `info migrate`; `help` lists the commands that minivmm has. A mistake in the \
             line is described in the returned text, as with QEMU",
            |caller, arguments: Arguments| Ok(carry_out(caller, arguments.text("command-line").unwrap_or_default()).into()),
        )
        .takes([needed("command-line", Kind::Text), optional("cpu-index", Kind::Integer)])
        .gives(Kind::Text),
    ]
}

/// Carries out a line, and returns what the monitor prints.
fn carry_out(caller: &Caller, text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let Some((name, words)) = words.split_first() else { return String::new() };
    let Some(line) = named(name) else { return unknown(name) };
    let help = |what: String| format!("{what}\r\nTry \"help {name}\" for more information\r\n");
    let taken = if line.takes.is_empty() && !words.is_empty() {
        Err(CommandError::TooLong)
    } else {
        (line.carry_out)(caller, words)
    };
    match taken {
        Ok(text) => text,
        Err(CommandError::Lacks) => help(format!("{}: string expected", line.names)),
        Err(CommandError::TooLong) => help(format!("{}: extraneous characters at the end of line", line.names)),
        Err(CommandError::Expected(what)) => help(format!("Expected {what}")),
        Err(CommandError::Refused(failure)) => format!("Error: {}\r\n", failure.desc),
    }
}

const fn line(
    names: &'static str,
    takes: &'static str,
    about: &'static str,
    carry_out: fn(&Caller, &[&str]) -> Result<String, CommandError>,
) -> Line {
    Line { names, takes, about, carry_out }
}

fn named(name: &str) -> Option<&'static Line> {
    LINES.iter().find(|line| line.names.split('|').any(|known| known == name))
}

fn unknown(what: &str) -> String {
    format!("unknown command: '{what}'\r\n")
}

/// Returns whether the words begin with the option, and the words after it.
fn option<'w, 's>(name: &str, words: &'w [&'s str]) -> (bool, &'w [&'s str]) {
    match words {
        [first, rest @ ..] if *first == name => (true, rest),
        _ => (false, words),
    }
}

/// Returns the words if there are exactly `N` of them.
fn exactly<'w, const N: usize>(words: &[&'w str]) -> Result<[&'w str; N], CommandError> {
    <[&str; N]>::try_from(words).map_err(|_| if words.len() < N { CommandError::Lacks } else { CommandError::TooLong })
}

fn run(caller: &Caller, command: &str, arguments: Value) -> Result<String, CommandError> {
    let Value::Object(arguments) = arguments else { return Err(CommandError::Lacks) };
    answer(caller, Band::In, command, arguments)?;
    Ok(String::new())
}

/// Reads a parameter's value as the monitor takes it: bytes a second in MiB, other sizes in bytes, unless a suffix says
/// otherwise.
fn parameter(name: &str, text: &str) -> Result<Value, CommandError> {
    if !is_parameter(name) {
        return Err(Failure::generic(format!("invalid parameter value: {name}")).into());
    }
    if name == bitmap_mapping::NAME {
        // QEMU's message (`hmp_migrate_set_parameter`, migration/migration-hmp-cmds.c).
        return Err(Failure::generic(format!("The {name} parameter can only be set through QMP")).into());
    }
    let unit = Parameter::named(name).map(|parameter| parameter.unit);
    let number = size(text, if unit == Some(ParameterUnit::BytesPerSecond) { 1 << 20 } else { 1 }).ok();
    Ok(match unit {
        Some(ParameterUnit::Word(_)) => text.into(),
        Some(ParameterUnit::Switch) if matches!(text, "on" | "off") => (text == "on").into(),
        _ => number.map_or_else(|| text.into(), Value::from),
    })
}

/// Whether the QMP command has the parameter, or a reason for its absence.
fn is_parameter(name: &str) -> bool {
    let set = crate::control::table::COMMANDS.iter().find(|command| command.name == "migrate-set-parameters");
    set.is_some_and(|set| {
        set.arguments
            .members
            .iter()
            .map(|member| member.name)
            .chain(set.lacks.iter().map(|(name, _)| *name))
            .any(|known| known == name)
    })
}

fn help(name: Option<&str>) -> String {
    let shown = LINES.iter().filter(|line| name.is_none_or(|name| line.names.split('|').any(|known| known == name)));
    shown.map(|line| format!("{} {} -- {}\r\n", line.names, line.takes, line.about)).collect()
}
