//! Address of a migration in QMP: a URI, or since QEMU 8.2 a list with one channel, and since QEMU 10.0 a second one for
//! descriptors.

use std::path::PathBuf;

use serde_json::Value;

use crate::config::Address;
use crate::control::commands::{Arguments, Failure};
use crate::control::kind::{Kind, Member, Shape, needed, optional};

/// Channel of the migration.
const MAIN: &str = "main";
/// Channel of the descriptors in mode `cpr-transfer`.
const CPR: &str = "cpr";

/// Arguments `uri` and `channels`; a command is given one of them.
pub(super) fn arguments() -> [Member; 2] {
    let socket = Shape::by(
        "type",
        [
            ("inet", Shape::of([needed("host", Kind::Text), needed("port", Kind::Text)])),
            ("unix", Shape::of([needed("path", Kind::Text)])),
            ("vsock", Shape::of([needed("cid", Kind::Text), needed("port", Kind::Text)])),
            ("fd", Shape::of([needed("str", Kind::Text)])),
        ],
    );
    let address = Shape::by(
        "transport",
        [
            ("socket", socket),
            ("exec", Shape::of([needed("args", Kind::list(Kind::Text))])),
            ("file", Shape::of([needed("filename", Kind::Text), needed("offset", Kind::Integer)])),
        ],
    );
    let channel = [needed("channel-type", Kind::word([MAIN, CPR])), needed("addr", Kind::Object(address))];
    [optional("uri", Kind::Text), optional("channels", Kind::list(Kind::object(channel)))]
}

/// Reads the address of the migration, and the path of the channel for descriptors, if there is one.
///
/// # Errors
/// Not exactly one of the arguments is given, or an address is wrong.
pub(super) fn addresses(arguments: &Arguments) -> Result<(Address, Option<PathBuf>), Failure> {
    let (uri, cpr) = match (arguments.text("uri"), arguments.list("channels")) {
        (Some(uri), []) => (uri.to_owned(), None),
        (None, channels @ [_, ..]) => {
            let of = |kind: &'static str| channels.iter().filter(move |channel| channel["channel-type"] == kind);
            if let Some(kind) = [MAIN, CPR].into_iter().find(|&kind| of(kind).count() > 1) {
                return Err(Failure::generic(format!("Channel list has more than one {kind} entry")));
            }
            let main = of(MAIN).next().ok_or_else(|| Failure::generic("Channel list has no main entry"))?;
            let cpr = of(CPR).next().map(|channel| socket(&channel["addr"])).transpose().map_err(Failure::generic)?;
            (uri(&main["addr"]), cpr)
        }
        (None, []) | (Some(_), [_, ..]) => return Err(Failure::generic("need either 'uri' or 'channels' argument")),
    };
    Ok((uri.parse().map_err(Failure::generic)?, cpr))
}

/// Reads the only address of a migration.
///
/// # Errors
/// As [`addresses`]; or there is a channel for descriptors.
pub(super) fn address(arguments: &Arguments) -> Result<Address, Failure> {
    match addresses(arguments)? {
        (address, None) => Ok(address),
        (_, Some(_)) => Err(Failure::generic("a cpr channel is given when the machine is started: --incoming")),
    }
}

/// A channel as QEMU's `-incoming` takes it.
#[derive(Debug, PartialEq, Eq)]
pub enum Channel {
    /// Address of the migration.
    Main(String),
    /// Path of the unix socket for descriptors.
    Cpr(PathBuf),
}

/// Reads a channel that is written as JSON.
///
/// # Errors
/// A sentence for the user.
pub fn channel(json: &str) -> Result<Channel, String> {
    let channel: Value = serde_json::from_str(json).map_err(|error| format!("this is no channel in JSON: {error}"))?;
    match channel["channel-type"].as_str() {
        Some(MAIN) => {
            let uri = uri(&channel["addr"]);
            uri.parse::<Address>().map(|_| Channel::Main(uri))
        }
        Some(CPR) => socket(&channel["addr"]).map(Channel::Cpr),
        _ => Err("channel-type has to be main or cpr".into()),
    }
}

/// Reads the path of a unix socket; the error is QEMU's (`cpr_transfer_output`, migration/cpr-transfer.c).
fn socket(address: &Value) -> Result<PathBuf, String> {
    let is_unix = address["transport"] == "socket" && address["type"] == "unix";
    let path = address["path"].as_str().filter(|path| is_unix && !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| "bad cpr channel address; must be unix".into())
}

/// Converts an address of the kind above to a URI.
fn uri(address: &Value) -> String {
    let text = |member: &str| address[member].as_str().unwrap_or_default();
    match (text("transport"), text("type")) {
        ("socket", "inet") if text("host").contains(':') => format!("tcp:[{}]:{}", text("host"), text("port")),
        ("socket", "inet") => format!("tcp:{}:{}", text("host"), text("port")),
        ("socket", "unix") => format!("unix:{}", text("path")),
        ("socket", "vsock") => format!("vsock:{}:{}", text("cid"), text("port")),
        ("file", _) => format!("file:{},offset={}", text("filename"), address["offset"]),
        ("exec", _) => {
            let args: Vec<_> = address["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            match args[..] {
                // QEMU's form of `exec:COMMAND`.
                ["/bin/sh", "-c", command] => format!("exec:{command}"),
                _ => format!("exec:{}", args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" ")),
            }
        }
        _ => format!("fd:{}", text("str")),
    }
}

/// Quotes a word for the shell (POSIX.1-2017, XCU 2.2.2).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The right side is what QEMU's `migrate_uri_parse` reads as the left side (migration/migration.c).
    #[test]
    fn a_channel_is_the_address_that_its_uri_is() {
        let cases = [
            (json!({"transport": "socket", "type": "inet", "host": "h", "port": "1"}), "tcp:h:1"),
            (json!({"transport": "socket", "type": "inet", "host": "::1", "port": "1"}), "tcp:[::1]:1"),
            (json!({"transport": "socket", "type": "unix", "path": "/x"}), "unix:/x"),
            (json!({"transport": "socket", "type": "vsock", "cid": "2", "port": "9"}), "vsock:2:9"),
            (json!({"transport": "socket", "type": "fd", "str": "five"}), "fd:five"),
            (json!({"transport": "file", "filename": "/f", "offset": 4096}), "file:/f,offset=4096"),
            (json!({"transport": "exec", "args": ["/bin/sh", "-c", "cat > x"]}), "exec:cat > x"),
            (json!({"transport": "exec", "args": ["/bin/ca t", "it's"]}), r"exec:'/bin/ca t' 'it'\''s'"),
        ];
        for (address, expected) in cases {
            assert_eq!(uri(&address), expected, "{address}");
        }
    }
}
