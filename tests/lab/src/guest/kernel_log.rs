//! Complaints in the guest kernel's log that a migration must not cause.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

const COMPLAINTS: &[&str] = &[
    "soft lockup",
    "I/O error",
    "blocked for more than",
    "hung task",
    "rcu: INFO",
    "Marking clocksource",
    // The figures that follow "Marking clocksource".
    "wd_nsec",
    "cs_nsec",
    "EXT4-fs error",
    "Remounting filesystem read-only",
    "BUG:",
    "WARNING: CPU",
    "unexpected IRQ",
    "nobody cared",
    "Oops",
];

/// The log's lines that are complaints; one line with the reason when the log cannot be read.
pub(super) fn complaints() -> Vec<String> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut log = match OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg") {
        Ok(log) => log,
        Err(error) => return vec![format!("/dev/kmsg: {error}")],
    };
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    // Each read returns one record; EAGAIN is the end of the log.
    while let Ok(size @ 1..) = log.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..size]);
        let message = text.split_once(';').map_or(&*text, |(_, message)| message).lines().next().unwrap_or_default();
        if is_complaint(message) {
            lines.push(message.to_owned());
        }
    }
    without_misreadings(lines)
}

/// Leaves out complaints about clocks that the kernel may have read wrong.
fn without_misreadings(mut lines: Vec<String>) -> Vec<String> {
    let mut at = 0;
    while at < lines.len() {
        let figures = lines[at + 1..].iter().take_while(|line| line.contains("_nsec:"));
        let figures: Vec<_> = figures.map(String::as_str).collect();
        if lines[at].contains(MARK) && clocks_agree(&figures.concat(), READOUT) {
            let last = at + figures.len();
            lines.drain(at..=last);
        } else {
            at += 1;
        }
    }
    lines
}

fn is_complaint(message: &str) -> bool {
    match message.contains(BUSY) {
        true => !clocks_agree(message, APART),
        false => COMPLAINTS.iter().any(|complaint| message.contains(complaint)),
    }
}

/// The kernel compared its clocks too late to judge them, and logs how far each advanced (`clocksource_watchdog`,
/// kernel/time/clocksource.c). If both advanced alike, the host was only busy.
const BUSY: &str = "Long readout interval";
/// Largest difference between the two clocks of such a line that is no complaint: reading both takes time.
const APART: Duration = Duration::from_millis(5);

/// The kernel found that its clocks advanced differently, and logs both intervals in the lines that follow.
const MARK: &str = "Marking clocksource";
/// Longest time between two clock readings that Linux since 6.12 treats as simultaneous (`cs_watchdog_read`: three
/// times the clock's margin of 250 µs); it marks a clock unstable at a difference of twice the margin. So a vCPU held
/// up between the two readings looks like a clock that jumped. `minivmm/tests/kvm_state.rs` shows that no clock jumps
/// by so little.
const READOUT: Duration = Duration::from_micros(750);

fn clocks_agree(message: &str, apart: Duration) -> bool {
    let figure = |name: &str| {
        let (_, rest) = message.split_once(name)?;
        let number = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
        number.parse().ok().map(Duration::from_nanos)
    };
    figure("cs_nsec:").zip(figure("wd_nsec:")).is_some_and(|(clock, watchdog)| clock.abs_diff(watchdog) <= apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that Linux 6.12 logged for one vCPU of a guest in an emulated host, and its lines where the TSC was
    /// restored later than the clock.
    #[test]
    fn a_delayed_clock_reading_is_no_jump() {
        let log = |watchdog: u64, clock: u64| {
            [
                "blk_update_request: I/O error, dev vda, sector 2048".to_owned(),
                "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:".to_owned(),
                format!("clocksource:                       'kvm-clock' wd_nsec: {watchdog} wd_now: 20a wd_last: 10a mask: ffff"),
                format!("clocksource:                       'tsc' cs_nsec: {clock} cs_now: 30b cs_last: 20b mask: ffff"),
                "hung task".to_owned(),
            ]
            .to_vec()
        };
        let held_up = without_misreadings(log(560_992_301, 560_384_584));
        assert_eq!(held_up, ["blk_update_request: I/O error, dev vda, sector 2048", "hung task"]);
        for (watchdog, clock) in [(560_992_301, 560_242_300), (560_992_301, 574_992_301)] {
            assert_eq!(without_misreadings(log(watchdog, clock)), log(watchdog, clock));
        }
        // Without figures the complaint stays.
        let alone = log(1, 1)[1..2].to_vec();
        assert_eq!(without_misreadings(alone.clone()), alone);
        assert_eq!(without_misreadings(Vec::new()), Vec::<String>::new());
    }

    #[test]
    fn complaints_are_recognised_by_the_kernels_text() {
        assert!(is_complaint("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [guest:1]"));
        assert!(is_complaint(
            "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:"
        ));
        assert!(is_complaint("blk_update_request: I/O error, dev vda, sector 2048"));
        assert!(!is_complaint("clocksource: Switched to clocksource kvm-clock"));
        let late = |clock, watchdog| {
            format!("clocksource: Long readout interval, skipping watchdog check: cs_nsec: {clock} wd_nsec: {watchdog}")
        };
        assert!(!is_complaint(&late("1101521047", "1101363794")));
        assert!(is_complaint(&late("1107521047", "1101363794")));
        assert!(is_complaint(&late("?", "1101363794")));
    }
}
