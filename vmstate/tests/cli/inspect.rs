//! `vmstate inspect` and `vmstate diff` on streams of QEMU.

use std::path::{Path, PathBuf};

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
    // Body of the section, as its fixture has it: 9600 baud, so 115200 / 12.
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
    // 16 MiB of zeros, and each page once.
    let ram = "RAM block microvm.ram: 16777216 bytes; 4096 pages sent, 0 normal (0 bytes), 4096 zero\n";
    assert!(out.contains(ram), "{out}");
    assert!(out.contains("command SwitchoverStart\n") && out.contains("  end of sections\n"), "{out}");
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
