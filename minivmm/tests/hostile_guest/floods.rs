//! Guests that reset or power off as fast as they can. Users' requests are still carried out within the second that
//! docs/threat-model.md promises.

use nix::sys::signal::Signal;

use crate::process::{AT_ONCE, Process, TIMEOUT};

/// Registers of the event device.
const SLEEP_CONTROL: u32 = 0xfea0_0200;
const RESET: u32 = 0xfea0_0202;

/// Register that a vCPU writes without end, and the value.
type Flood = (u32, u8);
const RESETS: Flood = (RESET, 0x42);
const POWER_OFFS: Flood = (SLEEP_CONTROL, 0x34);

/// Code of the flood, the same in 32-bit and 64-bit mode.
fn flood((register, value): Flood) -> Vec<u8> {
    let mut code = vec![0xbb]; // mov $register, %ebx
    code.extend(register.to_le_bytes());
    code.extend([0xc6, 0x03, value, 0xeb, 0xfb]); // again: movb $value, (%ebx); jmp again
    code
}

/// The first vCPU starts the others, gives them time to begin, and then floods like them.
fn flood_from_all(first: Flood, others: Flood) -> Vec<u8> {
    let others = application_processor(others);
    let first = flood(first);
    let mut code = vec![0xbf, 0, 0x80, 0, 0, 0xb9]; // mov $0x8000, %edi; mov $length, %ecx
    code.extend((others.len() as u32).to_le_bytes());
    code.extend([0x48, 0x8d, 0x35]); // lea others(%rip), %rsi
    let start = [
        0xfc, 0xf3, 0xa4, // cld; rep movsb
        0xbb, 0, 0x03, 0xe0, 0xfe, // mov $0xfee00300, %ebx: the interrupt command register
        0xc7, 0x03, 0, 0x45, 0x0c, 0, // movl $0xc4500, (%rbx): INIT to all others
        0xc7, 0x03, 0x08, 0x46, 0x0c, 0, // movl $0xc4608, (%rbx): start at 0x8000
        0xb9, 0, 0, 1, 0, // mov $0x10000, %ecx
        0xe2, 0xfe, // loop here
    ];
    code.extend(((start.len() + first.len()) as u32).to_le_bytes());
    code.extend(start);
    code.extend(first);
    code.extend(others);
    code
}

/// Code from real mode at 0x8000 to 32-bit mode and into the flood.
fn application_processor(flood: Flood) -> Vec<u8> {
    const TABLE: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let mut code = vec![
        0x66, 0x2e, 0x0f, 0x01, 0x16, 0x40, 0, // lgdtl %cs:0x40
        0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // mov %cr0, %eax; or $1, %al; mov %eax, %cr0
        0x66, 0xea, 0x17, 0x80, 0, 0, 0x08, 0, // ljmpl $8, $0x8017: the next instruction
        0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, // mov $0x10, %ax; mov %ax, %ds
    ];
    code.extend(self::flood(flood));
    code.resize(0x40, 0);
    code.extend(23_u16.to_le_bytes()); // limit and address of the table
    code.extend(0x8048_u32.to_le_bytes());
    code.resize(0x48, 0);
    code.extend(TABLE.iter().flat_map(|entry| entry.to_le_bytes()));
    code
}

/// Floods of resets: name, number of vCPUs, code.
fn reset_floods() -> [(&'static str, &'static str, Vec<u8>); 2] {
    [("one vCPU", "1", flood(RESETS)), ("four vCPUs", "4", flood_from_all(RESETS, RESETS))]
}

#[test]
fn stop_and_quit_are_answered_at_once_while_the_guest_resets_itself_without_end() {
    for (name, cpus, code) in reset_floods() {
        let Some(mut process) = Process::start(&code, &["--cpus", cpus]) else { return };
        process.await_machines(3);
        let mut user = process.user();
        for command in ["stop", "cont", "stop", "system_reset", "cont", "query-status", "quit"] {
            let (answer, took) = user.ask(command);
            assert!(answer.get("return").is_some(), "{name}: {command}: {answer}");
            assert!(took < AT_ONCE, "{name}: {command} was answered after {took:?}");
        }
        assert_eq!(process.end_within(AT_ONCE), Some(0), "{name}");
    }
}

#[test]
fn sigterm_ends_a_guest_that_resets_itself_without_end() {
    for (name, cpus, code) in reset_floods() {
        let Some(mut process) = Process::start(&code, &["--cpus", cpus]) else { return };
        process.await_machines(3);
        process.signal(Signal::SIGTERM);
        assert_eq!(process.end_within(AT_ONCE), Some(0), "{name}");
    }
}

/// A migration continues through resets: a machine that is about to boot arrives.
#[test]
fn a_guest_that_resets_itself_without_end_is_migrated() {
    for (name, cpus, code) in reset_floods() {
        let Some(mut source) = Process::start(&code, &["--cpus", cpus]) else { return };
        let address = source.unused_address();
        let mut destination = Process::awaiting(&address, &code, &["--cpus", cpus]);
        let (mut here, mut there) = (source.user(), destination.user());
        here.pause_without_end();
        let (answer, took) = here.ask_with("migrate", &serde_json::json!({"uri": address}));
        assert!(answer.get("return").is_some() && took < AT_ONCE, "{name}: {answer} after {took:?}");
        here.await_migration("completed");
        there.await_migration("completed");
        destination.await_machines(3);
        for (process, user) in [(&mut source, &mut here), (&mut destination, &mut there)] {
            let (answer, took) = user.ask("quit");
            assert!(answer.get("return").is_some() && took < AT_ONCE, "{name}: {answer} after {took:?}");
            assert_eq!(process.end_within(AT_ONCE), Some(0), "{name}");
        }
    }
}

#[test]
fn power_off_ends_the_process_once_however_often_and_beside_whatever_it_is_asked_for() {
    let floods = [
        ("one vCPU", "1", flood(POWER_OFFS)),
        ("four vCPUs", "4", flood_from_all(POWER_OFFS, POWER_OFFS)),
        ("resets beside it", "4", flood_from_all(RESETS, POWER_OFFS)),
    ];
    for (name, cpus, code) in floods {
        let Some(mut process) = Process::start(&code, &["--cpus", cpus]) else { return };
        assert_eq!(process.end_within(TIMEOUT), Some(0), "{name}");
    }
}
