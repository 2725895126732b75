//! `vmstate inspect` and `vmstate diff` on streams of QEMU.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::vmstate;

fn stream(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/streams").join(name)
}

#[test]
fn a_field_is_shown_by_name_with_its_place() {
    let file = stream("microvm-linux-kvm.bin");
    let (code, out, _) = vmstate(&["inspect", "--section", "serial", "--hex"], &[&file]);
    assert_eq!(code, 0);
    // The body of the section, from its fixture: 9600 baud, so 115200 / 12.
    let body = std::fs::read(stream("microvm-kvm-serial.section")).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let at = whole.windows(body.len()).position(|window| window == body).unwrap();
    assert!(out.contains(&format!("section serial/0, full, version 3, {} bytes\n", body.len())), "{out}");
    assert!(out.contains(&format!("{at:08x}      divider: uint16 = 12 (0xc)\n")), "{out}");
    assert!(out.contains(&format!("{at:08x}    | 000c")), "{out}");
}

#[test]
fn all_of_a_stream_is_listed() {
    let (code, out, _) = vmstate(&["inspect"], &[&stream("microvm-reset-16m.bin")]);
    assert_eq!(code, 0);
    assert!(out.starts_with("00000000  header QEVM, version 3\n00000008  configuration of machine microvm\n"), "{out}");
    // Each x87 register of 10 bytes has its own place.
    let (_, cpu, _) = vmstate(&["inspect", "--section", "cpu"], &[&stream("microvm-linux-kvm.bin")]);
    let places: Vec<_> = cpu.lines().filter(|line| line.contains("  env.fpregs[")).map(|line| &line[..8]).collect();
    assert_eq!(places[..3], ["000034b7", "000034c1", "000034cb"]);
    // 16 MiB of zeros, and each page once.
    let ram = "RAM block microvm.ram: 16777216 bytes; 4096 pages sent, 0 normal (0 bytes), 4096 zero\n";
    assert!(out.contains(ram), "{out}");
    assert!(out.contains("command SwitchoverStart\n") && out.contains("  end of sections\n"), "{out}");
}

/// A snapshot of a large guest is mostly holes: reading 4 GiB of them would take more than a second of processor time.
#[test]
fn holes_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stream");
    let whole = std::fs::read(stream("microvm-reset-16m.bin")).unwrap();
    std::fs::write(&file, &whole).unwrap();
    let sparse = std::fs::File::options().write(true).open(&file).unwrap();
    sparse.set_len(4 << 30).unwrap();
    sparse.write_all_at(b"end", (4 << 30) - 3).unwrap();
    let limited = "ulimit -t 1; exec \"$0\" inspect \"$1\"";
    let mut shell = Command::new("sh");
    let output = shell.args(["-c", limited, env!("CARGO_BIN_EXE_vmstate")]).arg(&file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    // The stream has lost its description, which is at the end of the file, and is listed up to there.
    assert!(text.contains("RAM block microvm.ram: 16777216 bytes; 4096 pages sent"), "{text}");
    assert!(text.contains("damaged: "), "{text}");
}

#[test]
fn json_has_the_same_values() {
    let (code, out, _) = vmstate(&["inspect", "--json", "--section", "serial/0"], &[&stream("microvm-linux-kvm.bin")]);
    assert_eq!(code, 0);
    let sections: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&sections[0]["name"], &sections[0]["version"]), (&json!("serial"), &json!(3)));
    assert_eq!(sections[0]["fields"]["state"]["lcr"], json!(0x13));
}

#[test]
fn damage_is_printed_after_what_came_before_it() {
    let whole = std::fs::read(stream("microvm-linux-kvm.bin")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.bin");
    std::fs::write(&cut, &whole[..20_000]).unwrap();
    let (code, out, _) = vmstate(&["inspect"], &[&cut]);
    assert_eq!(code, 1);
    assert!(out.contains("section ram/0, start, version 4"), "{out}");
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("damaged: ") && last.contains("expected"), "{last}");
    let (code, out, _) = vmstate(&["inspect", "--json"], &[&cut]);
    let dump: Value = serde_json::from_str(&out).unwrap();
    assert!(code == 1 && dump["damage"]["offset"].as_u64().unwrap() <= 20_000);
}

#[test]
fn diff_names_what_differs_and_nothing_else() {
    let old = stream("microvm-linux-kvm.bin");
    let mut bytes = std::fs::read(&old).unwrap();
    assert_eq!(vmstate(&["diff"], &[&old, &old]), (0, String::new(), String::new()));
    // The first field of the serial port is the divider.
    let body = std::fs::read(stream("microvm-kvm-serial.section")).unwrap();
    let at = bytes.windows(body.len()).position(|window| window == body).unwrap();
    bytes[at + 1] = 24;
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new.bin");
    std::fs::write(&new, &bytes).unwrap();
    let (code, out, _) = vmstate(&["diff"], &[&old, &new]);
    assert_eq!((code, out.as_str()), (1, "~ serial/0 › state › divider: 12 (0xc) → 24 (0x18)\n"));
}

#[test]
fn bad_usage_and_input_end_with_2() {
    let file = stream("microvm-linux-kvm.bin");
    let text = stream("README.md");
    for (arguments, file, says) in [
        (&["inspect", "--section", "no-such"][..], file.as_path(), "no section no-such"),
        (&["inspect"], Path::new("/no/such/file"), "No such file"),
        (&["inspect"], &text, "not a migration stream"),
        (&["inspect", "--colour"], &file, "unexpected argument"),
    ] {
        let (code, out, err) = vmstate(arguments, &[file]);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.contains(says), "{err}");
    }
}

/// A stream without the part after its last section: as truncation leaves it, or QEMU's `suppress-vmdesc=on`.
fn undescribed(stream: &Path) -> Vec<u8> {
    let bytes = std::fs::read(stream).unwrap();
    let mark = bytes.windows(8).rposition(|window| window[..2] == [0, 6] && window[6..] == *b"{\"").unwrap();
    bytes[..=mark].to_vec()
}

fn sections(arguments: &[&str], file: &Path) -> Vec<Value> {
    let (code, out, err) = vmstate(&[&["inspect", "--json"], arguments].concat(), &[file]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let dump: Value = serde_json::from_str(&out).unwrap();
    dump["entries"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "full").cloned().collect()
}

/// Streams of minivmm's devices, with the schema of each: the schema gives the same values as the stream's self-description.
#[test]
fn a_schema_takes_the_place_of_the_self_description() {
    let locks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../minivmm/tests/locks");
    let folder = tempfile::tempdir().unwrap();
    let bare = folder.path().join("bare.bin");
    for (device, state) in [("apic", "linux"), ("serial", "waiting"), ("acpi-ged", "pressed"), ("timer", "linux")] {
        let stream = locks.join(format!("{device}/1/{state}.bin"));
        std::fs::write(&bare, undescribed(&stream)).unwrap();
        let schema = locks.join(format!("{device}/1/schema.json"));
        let by_schema = sections(&["--schema", schema.to_str().unwrap()], &bare);
        assert_eq!(by_schema, sections(&[], &stream), "{device}");
        assert!(sections(&[], &bare)[0].get("fields").is_none());
    }
}

#[test]
fn a_stream_that_was_cut_is_read_by_qemus_dump() {
    let whole = std::fs::read(stream("microvm-linux-kvm.bin")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.bin");
    let body = std::fs::read(stream("microvm-kvm-serial.section")).unwrap();
    let at = whole.windows(body.len()).position(|window| window == body).unwrap();
    // Three bytes of the serial port are left.
    std::fs::write(&cut, &whole[..at + 3]).unwrap();
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qemu-10.0-dump-vmstate.json");
    let (code, out, _) = vmstate(&["inspect", "--schema", dump.to_str().unwrap()], &[&cut]);
    assert_eq!(code, 1);
    // QEMU's dump has all fields of the I/O APIC, but does not say that the event device has no slots.
    assert!(out.contains("  section ioapic/0, full, version 3, 206 bytes\n"), "{out}");
    assert!(out.contains("    ioregsel: size 1 = "), "{out}");
    assert!(out.contains("  the schema does not fit: "), "{out}");
    let ends = format!(
        "{at:08x}    state: struct of 3 bytes\n{at:08x}      divider: size 2 = 000c\n{:08x}      rbr: size 1 = 00\n",
        at + 2
    );
    assert!(out.contains(&ends), "{out}");
    let last = out.lines().last().unwrap();
    assert_eq!(last, format!("damaged: serial/0 › state › ier at {:#x}: 1 bytes expected, 0 left", at + 3));
}

#[test]
fn data_unknown_to_a_schema_is_shown_as_bytes() {
    let schema = json!({"serial": {"Name": "serial", "version_id": 3, "minimum_version_id": 3, "Description": {
        "name": "serial", "version_id": 3, "minimum_version_id": 3, "Fields": [
            {"field": "divider", "version_id": 0, "field_exists": false, "size": 2, "type": "uint16"},
            {"field": "rest", "version_id": 0, "field_exists": false, "size": 0, "type": "counted_buffer"}]}}});
    let folder = tempfile::tempdir().unwrap();
    let [bare, path] = ["bare.bin", "schema.json"].map(|name| folder.path().join(name));
    std::fs::write(&bare, undescribed(&stream("microvm-linux-kvm.bin"))).unwrap();
    std::fs::write(&path, schema.to_string()).unwrap();
    let schema = path.to_str().unwrap();
    let (code, out, _) = vmstate(&["inspect", "--section", "serial", "--schema", schema], &[&bare]);
    let lines: Vec<_> = out.lines().map(|line| line[10..].trim()).collect();
    let body = std::fs::read(stream("microvm-kvm-serial.section")).unwrap();
    let rest: String = body[2..].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(code, 0, "the stream is whole");
    assert_eq!(
        lines,
        [
            "section serial/0, full, version 3, 11 bytes",
            "divider: uint16 = 12 (0xc)",
            "not read from here: rest: the schema does not say which field has its length",
            &format!("bytes: {rest}"),
        ]
    );
    let (code, out, err) = vmstate(&["inspect", "--schema", "/no/such/file"], &[&bare]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("/no/such/file: No such file"), "{err}");
}
