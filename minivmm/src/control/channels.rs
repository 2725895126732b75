//! Address of a migration in QMP: a URI, or since QEMU 8.2 a list with one channel.

use serde_json::Value;

use crate::config::Address;
use crate::control::commands::{Arguments, Failure};
use crate::control::kind::{Kind, Member, Shape, needed, optional};

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
    let channel = [needed("channel-type", Kind::word(["main"])), needed("addr", Kind::Object(address))];
    [optional("uri", Kind::Text), optional("channels", Kind::list(Kind::object(channel)))]
}

/// Reads the address of the migration.
///
/// # Errors
/// Not exactly one of the arguments is given, or its address is wrong.
pub(super) fn address(arguments: &Arguments) -> Result<Address, Failure> {
    let uri = match (arguments.text("uri"), arguments.list("channels")) {
        (Some(uri), []) => uri.to_owned(),
        (None, [channel]) => uri(&channel["addr"]),
        (None, [_, _, ..]) => return Err(Failure::generic("Channel list has more than one main entry")),
        (None, []) | (Some(_), [_, ..]) => return Err(Failure::generic("need either 'uri' or 'channels' argument")),
    };
    uri.parse().map_err(Failure::generic)
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
