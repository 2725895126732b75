//! `minivmm run --config FILE` reads options of `run` from a TOML file and inserts them as arguments before those of the
//! command line. So each option is declared once, and the command line overrides the file.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, Parser};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::cli::{Cli, UsageError, one_sentence};
use crate::files::{self, Fit, Mode};

/// Longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Inserts the options of the file that `--config` names behind `run`; returns `arguments` unchanged without `--config`.
///
/// # Errors
/// The file cannot be read, or a line and key of it are wrong.
pub(super) fn expand(mut arguments: Vec<OsString>) -> Result<Vec<OsString>, UsageError> {
    if arguments.get(1).is_none_or(|command| command != "run") {
        return Ok(arguments);
    }
    // This parse only looks for `--config`: a required option may be in the file, and mistakes are reported when the whole line
    // is parsed.
    let lenient = Cli::command().ignore_errors(true).mut_subcommand("run", |run| run.ignore_errors(true));
    let given = lenient.try_get_matches_from(&arguments).ok();
    let given = given.as_ref().and_then(|matches| matches.subcommand_matches("run"));
    let path = given.and_then(|given| Some((given, given.try_get_one::<PathBuf>("config").ok()??)));
    let Some((given, path)) = path else { return Ok(arguments) };
    let text = read(path).map_err(|why| UsageError(format!("--config {}: {why}; give a TOML file", path.display())))?;
    let file = ConfigFile { path, text: &text };
    arguments.splice(2..2, file.arguments(given)?);
    Ok(arguments)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    files::open_path(path, Mode::Read, Fit::Regular)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(std::io::Error::other("it is longer than 1M"));
    }
    Ok(text)
}

struct ConfigFile<'f> {
    path: &'f Path,
    text: &'f str,
}

impl ConfigFile<'_> {
    /// Arguments for all keys of the file except the `given` ones.
    fn arguments(&self, given: &ArgMatches) -> Result<Vec<OsString>, UsageError> {
        let table = DeTable::parse(self.text)
            .map_err(|error| self.refusal(error.span().unwrap_or_default().start, error.message()))?;
        let command = Cli::command();
        let run = command.find_subcommand("run").map(|run| run.get_arguments().collect::<Vec<_>>()).unwrap_or_default();
        let options: BTreeMap<&str, &Arg> = run.iter().filter_map(|arg| Some((arg.get_long()?, *arg))).collect();
        let mut keys: Vec<_> = table.get_ref().iter().collect();
        keys.sort_by_key(|(key, _)| key.span().start);
        let mut arguments = Vec::new();
        for (key, value) in keys {
            let name = key.get_ref().as_ref();
            let option = options.get(name).filter(|_| !matches!(name, "config" | "help"));
            let option = option.ok_or_else(|| {
                self.refusal(
                    key.span().start,
                    format!("{name}: there is no such key; a key is an option of minivmm run, without --"),
                )
            })?;
            for (at, text) in self.values(name, option, value)? {
                let argument = format!("--{name}={text}");
                self.check(at, name, &argument)?;
                let taken = given.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine);
                arguments.extend((!taken).then(|| argument.into()));
            }
        }
        Ok(arguments)
    }

    /// Values of a key as the command line takes them, and the position of each in the file.
    fn values(
        &self,
        name: &str,
        option: &Arg,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<(usize, String)>, UsageError> {
        match value.get_ref() {
            DeValue::Array(list) if matches!(option.get_action(), ArgAction::Append) => {
                list.iter().map(|one| self.value(name, option, one)).collect()
            }
            _ => Ok(vec![self.value(name, option, value)?]),
        }
    }

    fn value(&self, name: &str, option: &Arg, value: &Spanned<DeValue<'_>>) -> Result<(usize, String), UsageError> {
        // The option's value name says which TOML type its values have.
        let kind = option.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        let at = value.span().start;
        let (text, expected) = match (kind, value.get_ref()) {
            ("on|off", DeValue::Boolean(on)) => (Some(if *on { "on" } else { "off" }.to_owned()), ""),
            ("on|off", _) => (None, "true or false"),
            ("N" | "SIZE", DeValue::Integer(number)) => (
                u64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string()),
                "a number from 0 on",
            ),
            ("N", _) => (None, "a number"),
            ("SIZE", DeValue::String(text)) => (Some(text.to_string()), ""),
            ("SIZE", _) => (None, "a number of bytes, or a string as \"256M\""),
            (_, DeValue::String(text)) => (Some(text.to_string()), ""),
            _ if matches!(option.get_action(), ArgAction::Append) => (None, "a string, or an array of strings"),
            _ => (None, "a string"),
        };
        let kind = value.get_ref().type_str();
        let text =
            text.ok_or_else(|| self.refusal(at, format!("{name}: this is of type {kind}; it has to be {expected}")))?;
        Ok((at, text))
    }

    /// Refuses a value that the option's own parser refuses; options that it requires may come from the command line.
    fn check(&self, at: usize, name: &str, argument: &str) -> Result<(), UsageError> {
        match Cli::try_parse_from(["minivmm", "run", argument]) {
            Err(error) if error.kind() == clap::error::ErrorKind::ValueValidation => {
                let why = error.source().map_or_else(|| one_sentence(&error.to_string()), ToString::to_string);
                Err(self.refusal(at, format!("{name}: {why}")))
            }
            _ => Ok(()),
        }
    }

    fn refusal(&self, at: usize, why: impl std::fmt::Display) -> UsageError {
        let line = self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1;
        UsageError(format!("{}:{line}: {why}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, Parsed, parse};
    use crate::config::{Config, ListenAt};

    /// Parses the machine of a file and of more options on the command line.
    fn run(toml: &str, more: &[&str]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.toml");
        std::fs::write(&path, toml).unwrap();
        let path = path.to_str().unwrap();
        let line = [&["minivmm", "run", "--config", path], more].concat();
        match parse(line).map_err(|error| error.to_string().replace(path, "vm.toml"))? {
            Parsed::Command(command) => match *command {
                Command::Run(arguments) => Ok(arguments.config()),
                other => panic!("{other:?}"),
            },
            Parsed::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn each_option_is_a_key() {
        let config = run(
            "kernel = \"vmlinuz\"\nappend = \"-x --config=y\"\nmemory = \"1G\"\ncpus = 0x2\ndisk = [\"a.raw,readonly\", \"b.raw\"]\n\
             net = \"tap=t\"\nserial = \"none\"\ncontrol = \"unix:/q\"\nsandbox = false\nlease = \"l\"\ninitrd = \"i\"\n",
            &[],
        )
        .unwrap();
        assert_eq!((config.append.as_str(), config.memory, config.cpus), ("-x --config=y", 1 << 30, 2));
        assert_eq!(config.disks.iter().map(|disk| disk.read_only).collect::<Vec<_>>(), [true, false]);
        assert_eq!((config.nets.len(), config.control), (1, Some("/q".into())));
        assert_eq!(run("incoming = \"tcp:h:1\"\nmemory = 1048576", &[]).unwrap().memory, 1 << 20);
    }

    /// The file may be shared by both sides of a migration: the command line adds to it and overrides it.
    #[test]
    fn the_command_line_comes_first() {
        let toml = "kernel = \"vmlinuz\"\nmemory = \"1G\"\ndisk = [\"a.raw\", \"b.raw\"]";
        let config = run(toml, &["--incoming", "unix:/in", "--memory", "2G", "--disk", "c.raw"]).unwrap();
        assert_eq!((config.kernel, config.memory), (Some("vmlinuz".into()), 2 << 30));
        assert_eq!(config.disks.iter().map(|disk| disk.path.clone()).collect::<Vec<_>>(), [PathBuf::from("c.raw")]);
        assert!(matches!(config.incoming, Some(ListenAt::Address(_))));
        // A value that looks like the option.
        let config = run(toml, &["--append", "--config=nowhere"]).unwrap();
        assert_eq!(config.append, "--config=nowhere");
    }

    #[test]
    fn each_mistake_is_reported_with_its_line_and_key() {
        let no_key = "there is no such key; a key is an option of minivmm run, without --";
        for (toml, why) in [
            ("\n\nmem = 1", &*format!("vm.toml:3: mem: {no_key}")),
            ("config = \"x\"", &format!("vm.toml:1: config: {no_key}")),
            ("[run]\ncpus = 1", &format!("vm.toml:1: run: {no_key}")),
            ("cpus = \"2\"", "vm.toml:1: cpus: this is of type string; it has to be a number"),
            ("cpus = [1]", "vm.toml:1: cpus: this is of type array; it has to be a number"),
            ("cpus = -1", "vm.toml:1: cpus: this is of type integer; it has to be a number from 0 on"),
            ("cpus = 9", "vm.toml:1: cpus: the machine has 1 to 8 vCPUs"),
            (
                "#\nmemory = 1.5",
                "vm.toml:2: memory: this is of type float; it has to be a number of bytes, or a string as \"256M\"",
            ),
            ("memory = \"1Q\"", "vm.toml:1: memory: write a number of bytes, or one with K, M, G or T, as 256M"),
            ("kernel = true", "vm.toml:1: kernel: this is of type boolean; it has to be a string"),
            ("kernel = [\"a\"]", "vm.toml:1: kernel: this is of type array; it has to be a string"),
            ("disk = 5", "vm.toml:1: disk: this is of type integer; it has to be a string, or an array of strings"),
            (
                "disk = [\n\"a\",\n\"b,ro\"]",
                "vm.toml:3: disk: 'ro' is unknown; write FILE or FILE,readonly (a comma in FILE as ,,)",
            ),
            ("sandbox = \"off\"", "vm.toml:1: sandbox: this is of type string; it has to be true or false"),
            ("cpus = 1\ncpus = 2", "vm.toml:2: duplicate key"),
            ("cpus = ", "vm.toml:1: string values must be quoted, expected literal string"),
        ] {
            assert_eq!(run(toml, &["--incoming", "unix:/in"]).unwrap_err(), why, "{toml}");
        }
        let missing = run("cpus = 1", &[]).unwrap_err();
        assert_eq!(missing, "the following required arguments were not provided: --kernel <FILE>; see minivmm --help");
        let nowhere = parse(["minivmm", "run", "--config", "/nowhere.toml"]).unwrap_err().to_string();
        assert_eq!(nowhere, "--config /nowhere.toml: No such file or directory (os error 2); give a TOML file");
    }
}
