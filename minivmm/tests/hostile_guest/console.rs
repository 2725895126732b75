//! A guest that prints while its console is not read.

use std::collections::BTreeSet;

use crate::process::{Process, until};

/// Prints 8 KiB, which is more than the pipe holds, and resets the machine by a triple fault.
const PRINTS_AND_RESETS: [u8; 21] = [
    0xbe, 0, 0, 0x10, 0, // mov $0x100000, %esi
    0xb9, 0, 0x20, 0, 0, // mov $0x2000, %ecx
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xfc, 0xf3, 0x6e, // cld; rep outsb
    0x0f, 0x0b, // ud2, with no handler for it
    0xeb, 0xfe, // jmp here
];

/// Prints without end.
const PRINTS: [u8; 13] = [
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xb9, 0, 4, 0, 0, // mov $0x400, %ecx
    0xf3, 0x6e, // rep outsb
    0xeb, 0xf7, // jmp to the mov before
];

#[test]
fn a_console_in_a_file_keeps_to_the_size_that_the_user_gave_it() {
    const MAX: u64 = 16 << 10;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let serial = format!("file:{},max=16K", path.display());
    let Some(_process) = Process::start(&PRINTS, &["--serial", &serial]) else { return };
    let len = |name| std::fs::metadata(directory.path().join(name)).map_or(0, |metadata| metadata.len());
    let (mut last, mut turns) = (0, 0);
    until("five turns", || {
        let (now, earlier) = (len("console"), len("console.1"));
        assert!(now <= MAX && earlier <= MAX, "{now} and {earlier} bytes");
        turns += usize::from(now < last);
        last = now;
        (turns >= 5).then_some(())
    });
}

/// Each reset makes a new vCPU thread, and no output thread besides the one that waits for the reader.
#[test]
fn resets_leave_no_thread_behind_while_nobody_reads_the_console() {
    let Some(process) = Process::start(&PRINTS_AND_RESETS, &["--serial", "stdio"]) else { return };
    let mut vcpus = BTreeSet::new();
    until("eight machines", || {
        vcpus.extend(process.threads("vcpu0"));
        let outputs = process.threads("serial-output").len();
        assert!(outputs <= 1, "{outputs} threads write to the console after {} machines", vcpus.len());
        (vcpus.len() >= 8).then_some(())
    });
}
