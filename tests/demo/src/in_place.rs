//! Measures how long a guest in an emulated host takes to its first tick after a stop, without a migration.
//!
//! QEMU's TCG keys translated code by the physical page of its source. A guest that has moved is in other pages of the
//! host, so all code that it runs is translated again. The same happens to a guest that is stopped for a moment while
//! each of its pages that is not empty is rewritten with its own content: QEMU drops the translations of a page that is
//! written (`tb_invalidate_phys_range`, accel/tcg/tb-maint.c). The time to such a guest's first tick is reported.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use vmstate_lab::error::{FileContext, Result};
use vmstate_lab::vmm::Vmm;

use crate::tick_gap::{self, ANSWER, ClockOffset, QUIET, TickGap};

const PAGE: usize = 4096;
/// Bytes of memory read at once.
const PIECE: usize = 64 * PAGE;

/// Stops a running guest with `memory` bytes of memory, rewrites its memory and resumes it; returns its gap, if the
/// guest's ticks show it.
pub(crate) fn measure(vmm: &mut Vmm, memory: u64) -> Result<Option<TickGap>> {
    let before = ClockOffset::measure(vmm)?;
    vmm.ask("mark", Instant::now() + ANSWER)?;
    std::thread::sleep(QUIET);
    vmm.qmp.execute("stop", Value::Null)?;
    let rewritten = rewrite(vmm.process().id(), memory);
    vmm.qmp.execute("cont", Value::Null)?;
    rewritten?;
    std::thread::sleep(QUIET);
    let mark = vmm.ask("mark", Instant::now() + ANSWER)?;
    let clocks = [before, ClockOffset::measure(vmm)?];
    Ok(TickGap::new(&mark, clocks, tick_gap::stopped(vmm, vmm)))
}

/// Rewrites each page that is not empty in each mapping of `size` bytes of a process whose guest is stopped.
fn rewrite(process: u32, size: u64) -> Result<()> {
    let directory = Path::new("/proc").join(process.to_string());
    let (maps, memory) = (directory.join("maps"), directory.join("mem"));
    let mappings = fs::read_to_string(&maps).doing("read", &maps)?;
    let file = OpenOptions::new().read(true).write(true).open(&memory).doing("open", &memory)?;
    let mut piece = vec![0; PIECE];
    for mapping in mappings.lines().filter_map(writable).filter(|range| range.end - range.start == size) {
        for begin in mapping.step_by(PIECE) {
            file.read_exact_at(&mut piece, begin).doing("read", &memory)?;
            for (at, page) in (begin..).step_by(PAGE).zip(piece.chunks(PAGE)) {
                if page.iter().any(|&byte| byte != 0) {
                    file.write_all_at(page, at).doing("write", &memory)?;
                }
            }
        }
    }
    Ok(())
}

/// The addresses of a line of `/proc/PID/maps` (proc_pid_maps(5)), if that memory can be written.
fn writable(line: &str) -> Option<Range<u64>> {
    let mut words = line.split(' ');
    let (begin, end) = words.next()?.split_once('-')?;
    let address = |digits| u64::from_str_radix(digits, 16).ok();
    words.next()?.starts_with("rw").then_some(address(begin)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_memory_is_found() {
        let line =
            |rights: &str| format!("7f0000000000-7f0010000000 {rights} 00000000 00:01 2054  /memfd:guest (deleted)");
        assert_eq!(writable(&line("rw-s")), Some(0x7f00_0000_0000..0x7f00_1000_0000));
        assert_eq!(writable(&line("r--p")), None);
        assert_eq!(writable("VmFlags: rd"), None);
    }
}
