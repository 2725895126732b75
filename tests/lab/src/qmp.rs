//! A small QMP client: one command at a time over the control socket, each with a deadline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, FileContext, Result};

const ANSWER: Duration = Duration::from_secs(60);
/// Time limit of a connection that is made by the first command.
const SOON: Duration = Duration::from_secs(1);

/// A connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    socket: PathBuf,
    /// `None` until the first command connects.
    stream: Option<UnixStream>,
    unread: Vec<u8>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects, waiting for the socket to appear, and negotiates.
    ///
    /// # Errors
    /// When there is no QMP greeting by `deadline`.
    pub fn connect(socket: &Path, deadline: Instant) -> Result<Self> {
        let mut qmp = Self::later(socket);
        qmp.open(deadline)?;
        Ok(qmp)
    }

    /// A client that connects at its first command, which fails if the socket is not there then.
    pub fn later(socket: &Path) -> Self {
        Self { socket: socket.into(), stream: None, unread: Vec::new(), events: Vec::new() }
    }

    fn open(&mut self, deadline: Instant) -> Result<()> {
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return Err(error).doing("connect to", &self.socket),
            }
        };
        self.stream = Some(stream);
        self.negotiate(deadline).inspect_err(|_| self.stream = None)
    }

    fn negotiate(&mut self, deadline: Instant) -> Result<()> {
        let greeting = self.line(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::failed(format!("{}: no QMP greeting but {greeting}", self.socket.display())));
        }
        self.execute("qmp_capabilities", Value::Null).map(drop)
    }

    /// Executes a command and returns its `return` value. `arguments` may be `Null`.
    ///
    /// # Errors
    /// The description of the error, or that no answer came.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        if self.stream.is_none() {
            self.open(Instant::now() + SOON)?;
        }
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let lost = |error: io::Error| Error::failed(format!("{command}: the control connection is lost: {error}"));
        let stream = self.stream.as_mut().ok_or_else(|| lost(io::ErrorKind::NotConnected.into()))?;
        stream.write_all(format!("{request}\r\n").as_bytes()).map_err(lost)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let mut answer = self.line(deadline)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("error without description");
                return Err(Error::failed(format!("{command}: {reason}")));
            }
            self.events.push(answer);
        }
    }

    /// Names of the events received so far.
    pub fn events(&self) -> Vec<&str> {
        self.events.iter().filter_map(|event| event["event"].as_str()).collect()
    }

    /// Time of the last event of this name, by the host's clock and since the epoch.
    pub fn event_time(&self, name: &str) -> Option<Duration> {
        let time = &self.events.iter().rfind(|event| event["event"] == name)?["timestamp"];
        Some(Duration::from_secs(time["seconds"].as_u64()?) + Duration::from_micros(time["microseconds"].as_u64()?))
    }

    fn line(&mut self, deadline: Instant) -> Result<Value> {
        let lost = |what: String| Error::failed(format!("the control connection is lost: {what}"));
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| lost(error.to_string()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(lost("no answer in time".into()));
            }
            let mut buffer = [0; 4096];
            let stream = self.stream.as_mut().ok_or_else(|| lost("closed".into()))?;
            match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut buffer)) {
                Ok(0) => return Err(lost("closed".into())),
                Ok(size) => self.unread.extend(&buffer[..size]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn events_are_kept_apart_from_answers_and_errors_are_returned() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut requests = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").unwrap();
            let answers = [
                "{\"return\": {}}\r\n",
                "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 7, \"microseconds\": 9}}\r\n{\"return\": {\"status\": \"paused\"}}\r\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
            ];
            let mut heard = Vec::new();
            for answer in answers {
                heard.push(requests.next().unwrap().unwrap());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            heard
        });
        let mut qmp = Qmp::connect(&socket, Instant::now() + ANSWER).unwrap();
        assert_eq!(qmp.execute("query-status", Value::Null).unwrap()["status"], "paused");
        assert_eq!(qmp.events(), ["STOP"]);
        assert_eq!(qmp.event_time("STOP"), Some(Duration::new(7, 9000)));
        assert_eq!(qmp.event_time("RESUME"), None);
        assert_eq!(qmp.execute("stop", json!({ "a": 1 })).unwrap_err().to_string(), "stop: no");
        let heard = server.join().unwrap();
        assert_eq!(heard[2], "{\"execute\":\"stop\",\"arguments\":{\"a\":1}}");
        assert!(qmp.execute("quit", Value::Null).is_err());
    }
}
