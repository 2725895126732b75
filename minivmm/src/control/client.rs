//! QMP client, for the commands of this program that control a running machine.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg};
use serde_json::{Map, Value, json};
use vmstate::migrate::ParameterValue;

use crate::control::report;

/// Longest message that is accepted from a server, in bytes.
const MESSAGE_MAX: u64 = 1 << 20;

/// Why a command to a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server answers at the socket.
    #[error("--control unix:{}: {source}; give the path that the machine was started with", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The report cannot be written to its file.
    #[error("--report {}: {source}; give a path that may be written to", path.display())]
    Report {
        /// The flag's value.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection that the machine should be passed cannot be made.
    #[error("{address}: {why}")]
    Address {
        /// Address of the migration.
        address: String,
        /// Why.
        why: String,
    },
    /// The machine refused a command.
    #[error("{0}")]
    Refused(String),
    /// The connection ended.
    #[error("the machine closed its control socket")]
    Closed,
    /// The connection failed.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
    /// The server does not speak QMP.
    #[error("the control socket does not speak QMP: {0}")]
    Protocol(String),
}

/// Connection whose capabilities are negotiated.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    migration_status: Option<String>,
    /// Events of jobs that have ended.
    ended_jobs: Vec<Value>,
}

impl Client {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// No process listens at `path`, or the listener is no QMP server.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect { path: path.into(), source })?;
        let mut client = Self { stream: BufReader::new(stream), migration_status: None, ended_jobs: Vec::new() };
        let greeting = client.message()?;
        if greeting.get("QMP").is_none() {
            return Err(ClientError::Protocol(format!("it greets with {greeting}")));
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Carries out one command and returns its result.
    ///
    /// # Errors
    /// The machine refuses, or the connection fails.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        let message = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.stream.get_mut().write_all(message.as_bytes())?;
        loop {
            let mut reply = self.message()?;
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                return Err(ClientError::Refused(error["desc"].as_str().unwrap_or("no reason given").into()));
            }
            match reply["event"].as_str() {
                Some("MIGRATION") => {
                    self.migration_status = reply["data"]["status"].as_str().map(str::to_owned);
                }
                Some("BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED") => self.ended_jobs.push(reply),
                _ => {}
            }
        }
    }

    /// Passes a descriptor to the machine under the name `name`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn pass(&mut self, name: &str, passed: &OwnedFd) -> Result<(), ClientError> {
        let rights = [passed.as_raw_fd()];
        let (socket, with) = (self.stream.get_ref().as_raw_fd(), [ControlMessage::ScmRights(&rights)]);
        // A descriptor needs at least one byte to travel with; white space between commands is ignored.
        sendmsg::<()>(socket, &[IoSlice::new(b" ")], &with, MsgFlags::empty(), None).map_err(io::Error::from)?;
        self.execute("getfd", json!({"fdname": name})).map(drop)
    }

    /// Returns the id of the process that made the socket.
    ///
    /// # Errors
    /// The system's.
    pub fn peer(&self) -> io::Result<i32> {
        Ok(getsockopt(self.stream.get_ref(), PeerCredentials)?.pid())
    }

    /// Waits until the machine has closed its end.
    pub fn await_end(&mut self) {
        while self.message().is_ok() {}
    }

    /// Begins a migration with these arguments of `migrate`. The changes of parameters hold for it and for later migrations;
    /// nothing changes if the machine refuses to begin, as during another migration.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn migrate<'n>(
        &mut self,
        mut arguments: Value,
        changes: impl Iterator<Item = (&'n str, ParameterValue)>,
    ) -> Result<(), ClientError> {
        let parameters: Map<_, _> = changes.map(|(name, value)| (name.into(), report::value(&value))).collect();
        if !parameters.is_empty() {
            arguments["parameters"] = parameters.into();
        }
        self.execute("migrate", arguments).map(drop)
    }

    /// Status in the last MIGRATION event; after the machine has ended, it is all that is known of the migration.
    pub fn migration_status(&self) -> Option<&str> {
        self.migration_status.as_deref()
    }

    /// Returns the event of the end of the job `id` once, if it has been read.
    pub fn end_of_job(&mut self, id: &str) -> Option<Value> {
        let at = self.ended_jobs.iter().position(|end| end["data"]["device"] == id)?;
        Some(self.ended_jobs.swap_remove(at))
    }

    fn message(&mut self) -> Result<Value, ClientError> {
        let mut line = Vec::new();
        (&mut self.stream).take(MESSAGE_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(ClientError::Closed);
        }
        serde_json::from_slice(&line).map_err(|error| ClientError::Protocol(error.to_string()))
    }
}
