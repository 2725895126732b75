//! A guest that dirties all its pages in each round at any bandwidth migrates once the policy throttles its vCPU.

use std::cell::Cell;
use std::time::Duration;

use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState, Terms};
use vmstate::migrate::ParameterValue;
use vmstate_lab::tiny;

use crate::machine::{Machine, TIMEOUT, lab, unix_address, until};

const PAGES: u64 = 512;

/// Prints a line, then adds to each page in turn. Sixteen writes to a port without a device follow each page, so that a host
/// that runs instructions a thousand times as fast does not dirty a thousand times as much.
const DIRTIES_SLOWLY: [u8; 43] = [
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8, %edx
    0xb0, 0x70, 0xee, // mov $'p', %al; out %al, (%dx)
    0xb0, 0x0a, 0xee, // mov $'\n', %al; out %al, (%dx)
    0xbf, 0x00, 0x00, 0x40, 0x00, // again: mov $0x400000, %edi
    0xb9, 0x00, 0x02, 0x00, 0x00, // mov $PAGES, %ecx
    0x48, 0xff, 0x07, // next: incq (%rdi)
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add $0x1000, %rdi
    0xb0, 0x10, // mov $16, %al
    0xe6, 0x80, // waits: out %al, $0x80
    0xfe, 0xc8, // dec %al
    0x75, 0xfa, // jne waits
    0xe2, 0xec, // loop next
    0xeb, 0xe0, // jmp again
];

#[test]
fn a_guest_that_dirties_more_than_goes_arrives_once_it_is_throttled() {
    let Some(dir) = lab() else { return };
    let kernel = tiny::with_code(&DIRTIES_SLOWLY);
    let source = Machine::start_kernel(dir.path(), None, Vec::new(), None, &kernel);
    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start_kernel(dir.path(), Some(&address), Vec::new(), None, &kernel);
    source.await_line();
    // All pages take 0.2 s of a round and would take 2 s of the pause, whose limit is 1 ms: so the pause is never short enough.
    // The source does not give up, since it has a deadline.
    let limit = Cell::new(PAGES * 4096 * 5);
    let set = |change| source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    set(ParameterChange::default()
        .with("max-bandwidth", limit.get())
        .with("avail-switchover-bandwidth", PAGES * 4096 / 2)
        .with("downtime-limit", Duration::from_millis(1))
        .with("deadline", TIMEOUT * 2)
        .with("deadline-action", ParameterValue::Word("switch-over".into()))
        .with("cpu-throttle-initial", 80));
    source.handle.ask(Request::Migrate(address, Terms::default())).unwrap();
    let figures = || source.handle.migration().figures;
    // Waits for two more complete rounds.
    let rounds = || {
        let wanted = figures().rounds + 3;
        until(|| figures().rounds >= wanted, || format!("{:?}", source.handle.migration()));
    };
    // On a slow host rounds have to be longer for the guest to reach nearly all pages in each.
    let longer_rounds = || {
        limit.set(limit.get() / 2);
        set(ParameterChange::default().with("max-bandwidth", limit.get()));
    };
    rounds();
    while figures().dirty_pages_per_second * 4096 < limit.get() * 7 / 10 {
        longer_rounds();
        rounds();
    }
    assert_eq!(figures().slowdown.highest_throttle_percent, 0);

    set(ParameterChange::default().with("auto-converge", true));
    rounds();
    // A vCPU that had no processor is not held.
    while figures().slowdown.throttled.is_zero() {
        longer_rounds();
        rounds();
    }
    // The rest is a quarter of the pages.
    let is_little = || figures().expected_downtime.is_some_and(|pause| pause < Duration::from_millis(500));
    until(is_little, || format!("{:?}", source.handle.migration()));
    set(ParameterChange::default().with("downtime-limit", Duration::from_secs(1)));
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    until(|| destination.handle.run_state() == RunState::Running, || format!("{:?}", destination.handle.run_state()));
    let info = source.handle.migration();
    let (throttle, slowdown) = (info.figures.throttle_percent, info.figures.slowdown);
    assert!(throttle == 0 && slowdown.throttled > Duration::ZERO, "{info:?}");
    assert!(slowdown.throttled < info.figures.elapsed, "{info:?}");
    source.quit();
    destination.quit();
}
