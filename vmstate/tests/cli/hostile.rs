//! Names from a file that try to control the reader's terminal: no task of the program prints them unescaped.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::vmstate;

/// Clears the screen, returns to the line's start, begins a line, opens an escape sequence with a C1 character, reverses the
/// writing direction, hides text, ends a line with a Unicode separator.
const HOSTILE: &str = "x\x1b[2J\r\nforged: no\u{9b}31m\u{202e}\u{200b}\u{2066}\u{2028}\u{7f}\u{ad}\u{feff}y";

/// Streams in which every name is [`HOSTILE`]. The second differs from the first in the serial port's divider.
fn streams(folder: &Path) -> [PathBuf; 2] {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/streams");
    let mut stream = fs::read(fixtures.join("microvm-linux-kvm.bin")).unwrap();
    let body = fs::read(fixtures.join("microvm-kvm-serial.section")).unwrap();
    let mark = stream.windows(8).rposition(|window| window[..2] == [0, 6] && window[6..] == *b"{\"").unwrap();
    let mut description: Value = serde_json::from_slice(&stream[mark + 6..]).unwrap();
    stream.truncate(mark + 1);
    for name in ["serial", "microvm.ram"] {
        stream = replaced(&stream, &counted(name), &counted(HOSTILE));
    }
    // Names in the configuration have a length of four bytes.
    let [machine, hostile] = ["microvm", HOSTILE].map(|name| [&[0, 0, 0], &*counted(name)].concat());
    stream = replaced(&stream, &machine, &hostile);
    for device in description["devices"].as_array_mut().unwrap() {
        if device["name"] == "serial" {
            device["name"] = HOSTILE.into();
        }
        // A subsection's name begins with its section's, and is on the wire.
        rename_fields(&mut device["fields"]);
    }
    let text = description.to_string();
    stream.push(6);
    stream.extend((text.len() as u32).to_be_bytes());
    stream.extend(text.as_bytes());
    let at = stream.windows(body.len()).position(|window| window == body).unwrap();
    let mut other = stream.clone();
    other[at + 1] = 24;
    [("old.bin", stream), ("new.bin", other)].map(|(name, bytes)| {
        let file = folder.join(name);
        fs::write(&file, bytes).unwrap();
        file
    })
}

fn counted(name: &str) -> Vec<u8> {
    [&[name.len() as u8], name.as_bytes()].concat()
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend([&rest[..at], to].concat());
        rest = &rest[at + from.len()..];
    }
    assert!(!out.is_empty(), "{from:?} is in the stream");
    out.extend(rest);
    out
}

/// Appends [`HOSTILE`] to the names of all fields and types of a self-description.
fn rename_fields(fields: &mut Value) {
    for field in fields.as_array_mut().into_iter().flatten() {
        field["name"] = format!("{}{HOSTILE}", field["name"].as_str().unwrap()).into();
        if field.get("struct").is_some() {
            rename_fields(&mut field["struct"]["fields"]);
        }
    }
}

/// Checks that no character of [`HOSTILE`] in Cc, Cf, Zl or Zp is printed; the program itself prints new lines.
#[track_caller]
fn is_harmless(arguments: &[&str], text: &str) {
    let steers =
        |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{200b}\u{2066}\u{2028}\u{ad}\u{feff}".contains(c));
    assert!(!text.contains(steers), "{arguments:?}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{arguments:?}: {text}");
}

#[test]
fn names_of_a_stream_do_not_control_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let [old, new] = streams(folder.path());
    for arguments in
        [&["inspect"][..], &["inspect", "--json"], &["inspect", "--hex"], &["inspect", "--section", HOSTILE]]
    {
        let (code, out, err) = vmstate(arguments, &[&old]);
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("forged: no") && out.contains("divider"), "{arguments:?}: {out}");
        is_harmless(arguments, &(out + &err));
    }
    let (code, out, err) = vmstate(&["diff"], &[&old, &new]);
    assert!(code == 1 && out.contains("12 (0xc) → 24 (0x18)") && out.contains("forged: no"), "{out}{err}");
    is_harmless(&["diff"], &out);

    let mut bytes = fs::read(&old).unwrap();
    let name = bytes.windows(HOSTILE.len()).rposition(|window| window == HOSTILE.as_bytes()).unwrap();
    bytes[name + HOSTILE.len() + 4..].fill(0x99);
    fs::write(&new, bytes).unwrap();
    for arguments in [&["inspect"][..], &["inspect", "--json"], &["diff"]] {
        let both: [&Path; 2] = [&old, &new];
        let (code, out, err) = vmstate(arguments, if arguments == ["diff"] { &both } else { &both[1..] });
        let text = out + &err;
        assert!(code > 0 && text.contains("forged: no") && text.contains("damage"), "{arguments:?}: {text}");
        is_harmless(arguments, &text);
    }
    let json: Value = serde_json::from_str(&vmstate(&["inspect", "--json", "--section", HOSTILE], &[&old]).1).unwrap();
    assert_eq!(json[0]["name"], HOSTILE, "a program gets the name as it is");
}

#[test]
fn names_of_a_schema_do_not_control_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let field = |name: &str, size: u32| json!({"field": format!("{HOSTILE}{name}"), "version_id": 0, "size": size, "field_exists": name == "a"});
    let schema = |fields: &[Value], subsection: &str| {
        let name = format!("{HOSTILE}/{subsection}");
        let inner = json!({"name": name, "version_id": 1, "minimum_version_id": 1, "Fields": [field("s", 2)]});
        let description = json!({"name": HOSTILE, "version_id": 1, "minimum_version_id": 1, "Fields": fields, "Subsections": [inner]});
        json!({"vmschkmachine": {"Name": HOSTILE}, HOSTILE: {"Name": HOSTILE, "version_id": 1, "minimum_version_id": 1, "Description": description}})
    };
    let old = schema(&[field("a", 4), field("b", 4)], "one");
    let mut new = schema(&[field("a", 4), field("b", 8), field("c", 1)], "two");
    new["vmschkmachine"]["Name"] = format!("{HOSTILE}2").into();
    let files = [("old.json", &old), ("new.json", &new)].map(|(name, schema)| {
        let file = folder.path().join(name);
        fs::write(&file, schema.to_string()).unwrap();
        file
    });
    for arguments in [&["check", "--both"][..], &["check", "--json"], &["check", "--markdown"]] {
        let (code, out, err) = vmstate(arguments, &[&files[0], &files[1]]);
        assert!(code == 1 && out.contains("forged: no"), "{arguments:?}: {out}{err}");
        is_harmless(arguments, &(out + &err));
    }
    fs::write(&files[1], json!({HOSTILE: {"Description": {"name": 1}}}).to_string()).unwrap();
    let (code, out, err) = vmstate(&["check"], &[&files[0], &files[1]]);
    assert_eq!(code, 2, "{out}");
    is_harmless(&["check"], &err);
}
