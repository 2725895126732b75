//! `minivmm tls`, and the options for the parameters of TLS of all commands that migrate.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use vmstate::migrate::ParameterValue;

use crate::certificates::{self, Wanted};
use crate::cli::UsageError;
use crate::config::Tls;

/// Commands for certificates.
#[derive(Clone, Debug, Subcommand)]
pub enum TlsCommand {
    /// Make certificates for two hosts that trust each other
    Init(InitArgs),
}

/// Flags of `minivmm tls init`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  minivmm tls init certs --host b.example --host 192.0.2.2\n  minivmm tls init certs --self-signed"
)]
pub struct InitArgs {
    /// Directory for the files, which is the value of --tls-creds: created if it does not exist; no file is replaced
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Name or address of a destination; may be repeated
    #[arg(long = "host", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    hosts: Vec<String>,
    /// How long the certificates are valid, in days: 1 to 36500
    #[arg(long, value_name = "N", default_value = "365", value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Sign the certificates by themselves, without an authority: the other side is given their SHA-256 as --tls-pin
    #[arg(long)]
    self_signed: bool,
}

impl TlsCommand {
    /// Makes the certificates; returns the text for the user.
    ///
    /// # Errors
    /// A file cannot be made, or exists already.
    pub fn carry_out(&self) -> Result<String, UsageError> {
        let Self::Init(InitArgs { directory, hosts, days, self_signed }) = self;
        let wanted =
            Wanted { directory: directory.clone(), hosts: hosts.clone(), days: *days, self_signed: *self_signed };
        let made = certificates::make(&wanted).map_err(|error| UsageError(error.to_string()))?;
        let mut text = String::new();
        for (name, fingerprint) in made {
            // A String takes any text.
            let _ = writeln!(text, "{}  SHA-256 {fingerprint}", directory.join(name).display());
        }
        let next = match self_signed {
            true => {
                "Give each side the SHA-256 of the other side's certificate: to the source the server's as --tls-pin, to the destination the client's."
            }
            false => {
                "Copy the directory to the other host; ca-key.pem is needed only to sign more certificates, and stays."
            }
        };
        text.push_str(next);
        Ok(text)
    }
}

/// [Parameters](Tls::PARAMETERS) of TLS that were given, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsArgs(Vec<(&'static str, String)>);

impl TlsArgs {
    /// The options as changes of a machine's parameters. Paths are absolute, since the machine may have been started in another
    /// folder.
    ///
    /// # Errors
    /// This process has no current folder.
    pub(super) fn changes(&self) -> io::Result<impl Iterator<Item = (&'static str, ParameterValue)>> {
        let mut changes = Vec::new();
        for (name, text) in &self.0 {
            let text = match *name {
                "tls-creds" if !text.is_empty() => std::path::absolute(text)?.display().to_string(),
                _ => text.clone(),
            };
            changes.push((*name, ParameterValue::Word(text.into())));
        }
        Ok(changes.into_iter())
    }

    /// The options as the parameters of a new machine.
    pub(super) fn parameters(&self) -> Tls {
        let mut tls = Tls::default();
        // Cannot fail: the parser of the options has checked each text.
        self.0.iter().for_each(|(name, text)| drop(tls.set(name, text)));
        tls
    }

    fn options() -> impl Iterator<Item = Arg> {
        Tls::PARAMETERS.iter().map(|&(name, meaning)| {
            let value = match name {
                "tls-creds" => "DIR",
                "tls-hostname" => "NAME",
                "tls-authz" => "NAME[;NAME]…",
                _ => "SHA256[,SHA256]…",
            };
            let mut help = meaning.to_owned();
            if let Some(first) = help.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            let read = move |text: &str| Tls::default().set(name, text).map(|()| text.to_owned());
            Arg::new(name).long(name).value_name(value).help(help).value_parser(read)
        })
    }
}

impl Args for TlsArgs {
    fn augment_args(command: Command) -> Command {
        command.args(Self::options())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for TlsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |&(name, _): &(&'static str, &str)| Some((name, matches.get_one::<String>(name)?.clone()));
        Ok(Self(Tls::PARAMETERS.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
