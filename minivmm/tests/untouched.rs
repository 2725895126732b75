//! Migrating memory that a guest never touched allocates no memory of the host on either side.

use minivmm::memory::{PAGE_SIZE, Ram};
use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use vmstate::codec::{Limits, Outbox, Piece, Reader, Strictness};
use vmstate::ram::{DirtyLog, PageCount};
use vmstate::raw::ram::{RamReceiver, RamRecord, RamSender, put_end_of_section};

/// A machine whose guest does not run, so nothing is written.
struct Still;

impl DirtyLog for Still {
    fn start(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _block: usize, _words: &mut [u64]) -> vmstate::Result<()> {
        Ok(())
    }
    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> vmstate::Result<()> {
        Ok(())
    }
    fn stop(&mut self) {}
}

/// Resident bytes of `ram`, and of memory that the kernel reports together with it (proc_pid_smaps(5)).
fn resident(ram: &Ram) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut here = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if let Some((start, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-'))
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            here =
                ram.stretches().any(|stretch| start < stretch.host_address + stretch.len && stretch.host_address < end);
        } else if let Some(kib) = line.strip_prefix("Rss:").filter(|_| here) {
            sum += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        }
    }
    sum
}

#[test]
fn a_guest_that_touched_little_costs_little_on_both_sides() {
    const LEN: u64 = 1 << 30;
    let (source, target) = (Ram::new(LEN).unwrap(), Ram::new(LEN).unwrap());
    let written = [0, 100 << 20, (700 << 20) + 5 * PAGE_SIZE];
    for offset in written {
        source.write(offset, &[7; 100]).unwrap();
    }
    let before = resident(&source);
    assert!((3 * PAGE_SIZE..=3 * (2 << 20)).contains(&before), "{before} bytes");

    let leaving = MachineRam::leaving(source.clone(), &Firmware::default(), false);
    let arriving = MachineRam::arriving(target.clone(), Firmware::default());
    let (mut log, mut out, mut bytes) = (Still, Outbox::new(), Vec::new());
    let mut sender = RamSender::start(&leaving, &mut log).unwrap();
    sender.look(4096).unwrap();
    assert!(sender.put_pages(&mut out, u64::MAX).unwrap());
    put_end_of_section(&mut out);
    for piece in out.pieces() {
        match piece {
            Piece::Bytes(piece) => bytes.extend_from_slice(piece),
            Piece::Pages(run) => {
                let at = bytes.len();
                bytes.resize(at + run.len as usize, 0);
                source.read(run.offset, &mut bytes[at..]).unwrap();
            }
        }
    }
    assert_eq!(sender.sent(), PageCount { normal: 3, zero: LEN / PAGE_SIZE - 3 });
    assert_eq!(resident(&source), before);

    let mut receiver = RamReceiver::new(&arriving);
    let mut reader = Reader::new(&bytes, 0, Strictness::Strict, Limits::default());
    while receiver.read_records(&mut reader).unwrap() == RamRecord::Page {}
    assert_eq!(receiver.received(), sender.sent());
    let arrived = resident(&target);
    assert!((3 * PAGE_SIZE..=before + 3 * (2 << 20)).contains(&arrived), "{arrived} bytes");
    for offset in written {
        let mut page = [0; PAGE_SIZE as usize];
        target.read(offset, &mut page).unwrap();
        assert!(page[..100] == [7; 100] && page[100..].iter().all(|&byte| byte == 0));
    }
}
