//! Guests that write one register as fast as they can. Each write is an exit; nothing is queued, and requests are not delayed.

use std::fs;

use crate::process::{AT_ONCE, Process, until};

/// Registers of the first virtio device (virtio 1.2 §4.2.2).
const QUEUE_NOTIFY: u32 = 0xfeb0_0e50;
const INTERRUPT_ACK: u32 = 0xfeb0_0e64;
const STATUS: u32 = 0xfeb0_0e70;
/// `writeback` of the disk's configuration (§5.2.4).
const WRITEBACK: u32 = 0xfeb0_0f20;

/// Code that writes `value` to a memory-mapped register without end.
fn writes(register: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xbb]; // mov $register, %ebx
    code.extend(register.to_le_bytes());
    code.extend([0xc7, 0x03]); // again: movl $value, (%ebx)
    code.extend(value.to_le_bytes());
    code.extend([0xeb, 0xf8]); // jmp again
    code
}

/// Raises and lowers the serial port's interrupt: IER alternates between 0 and 2.
const RAISES: [u8; 11] = [
    0x66, 0xba, 0xf9, 0x03, 0xb0, 0x02, // mov $0x3f9, %dx; mov $2, %al
    0xee, 0x34, 0x02, 0xeb, 0xfb, // again: out %al, %dx; xor $2, %al; jmp again
];

#[test]
fn registers_written_without_end_keep_nobody_waiting_and_hold_nothing() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let disk = disk.path().to_str().unwrap();
    let floods = [
        ("kicks", writes(QUEUE_NOTIFY, 0)),
        ("acknowledgements", writes(INTERRUPT_ACK, 3)),
        ("resets of a device", writes(STATUS, 0)),
        ("configuration", writes(WRITEBACK, 1)),
        ("interrupts", RAISES.to_vec()),
    ];
    for (name, code) in floods {
        let Some(mut process) = Process::start(&code, &["--serial", "none", "--disk", disk]) else { return };
        let mut user = process.user();
        let vcpu = process.threads("vcpu0")[0];
        let runs = |time| until("processor time of the vCPU", || (ticks(&process, vcpu) >= time).then_some(()));
        // KVM starts a thread with the first instruction.
        runs(2);
        let before = held(&process);
        // Tens of thousands of exits, some of which wait for the device's thread.
        runs(50);
        for command in ["query-status", "stop", "cont", "system_reset", "stop", "cont", "quit"] {
            let (answer, took) = user.ask(command);
            assert!(answer.get("return").is_some() && took < AT_ONCE, "{name}: {command}: {answer} after {took:?}");
            if command == "query-status" {
                let now = held(&process);
                assert!(now.threads <= before.threads && now.files <= before.files, "{name}: {before:?}, then {now:?}");
                assert!(now.kib < before.kib + (16 << 10), "{name}: {before:?}, then {now:?}");
            }
        }
        assert_eq!(process.end_within(AT_ONCE), Some(0), "{name}");
    }
}

/// Resources of the process.
#[derive(Debug)]
struct Holding {
    threads: usize,
    files: usize,
    /// Memory, including touched guest RAM.
    kib: u64,
}

fn held(process: &Process) -> Holding {
    let at = |name: &str| format!("/proc/{}/{name}", process.id());
    let status = fs::read_to_string(at("status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Holding {
        threads: fs::read_dir(at("task")).unwrap().count(),
        files: fs::read_dir(at("fd")).unwrap().count(),
        kib: rss.trim().trim_end_matches(" kB").parse().unwrap(),
    }
}

/// Processor time of a thread, in the kernel's ticks of 10 ms (proc_pid_stat(5): user and system, fields 14 and 15).
fn ticks(process: &Process, thread: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/task/{thread}/stat", process.id())).unwrap();
    let behind_name = stat.rsplit(") ").next().unwrap();
    behind_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
