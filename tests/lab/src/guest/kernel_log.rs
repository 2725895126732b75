//! The guest kernel's own complaints: lines of its log that a migration must not cause.

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
    // The figures that come with it.
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

/// Lines that complain; one that says why when the log cannot be read.
pub(super) fn complaints() -> Vec<String> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut log = match OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg") {
        Ok(log) => log,
        Err(error) => return vec![format!("/dev/kmsg: {error}")],
    };
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    // One record a read; EAGAIN at the end.
    while let Ok(size @ 1..) = log.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..size]);
        let message = text.split_once(';').map_or(&*text, |(_, message)| message).lines().next().unwrap_or_default();
        if is_complaint(message) {
            lines.push(message.to_owned());
        }
    }
    lines
}

fn is_complaint(message: &str) -> bool {
    match message.contains(BUSY) {
        true => !clocks_agree(message),
        false => COMPLAINTS.iter().any(|complaint| message.contains(complaint)),
    }
}

/// The kernel compared its clocks too late to judge them, and shows how far each went: a busy host, if both went as far
/// (`clocksource_watchdog`, kernel/time/clocksource.c).
const BUSY: &str = "Long readout interval";
/// Most that the two may differ in: reading them takes time, too.
const APART: Duration = Duration::from_millis(5);

fn clocks_agree(message: &str) -> bool {
    let figure = |name: &str| {
        let (_, rest) = message.split_once(name)?;
        let number = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
        number.parse().ok().map(Duration::from_nanos)
    };
    figure("cs_nsec:").zip(figure("wd_nsec:")).is_some_and(|(clock, watchdog)| clock.abs_diff(watchdog) <= APART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_known_by_the_kernels_words() {
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
