//! `minivmm tls`, and the options for the parameters of TLS in every command that has connections of migrations.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use vmstate::migrate::ParameterValue;

use crate::certificates::{self, Wanted};
use crate::cli::UsageError;
use crate::config::Tls;

/// What is done about certificates.
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
    /// Where the files go, for tls-creds: it is made if it is not there, and no file is replaced
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Name or address of a destination; may be repeated
    #[arg(long = "host", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    hosts: Vec<String>,
    /// How long the certificates are valid, in days: 1 to 36500
    #[arg(long, value_name = "N", default_value = "365", value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Make no authority: the other side is given the SHA-256 of the certificate, as tls-pin
    #[arg(long)]
    self_signed: bool,
}

impl TlsCommand {
    /// Does it; what the user is told.
    ///
    /// # Errors
    /// What cannot be made, or is there already.
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
                "Give each side the SHA-256 of the other side's certificate: a source --tls-pin of the server's, a destination of the client's."
            }
            false => {
                "Copy the directory to the other host; ca-key.pem is needed only to sign more certificates, and stays."
            }
        };
        text.push_str(next);
        Ok(text)
    }
}

/// What was given of the [parameters](Tls::PARAMETERS), in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsArgs(Vec<(&'static str, String)>);

impl TlsArgs {
    /// What was given, as changes of parameters of a machine that may have been started in another folder.
    ///
    /// # Errors
    /// There is no folder here.
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

    /// What was given, where nothing was before.
    pub(super) fn parameters(&self) -> Tls {
        let mut tls = Tls::default();
        // Each was read in the same way before.
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
