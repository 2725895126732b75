//! Migrates pages that the destination has and that were changed since, between QEMUs whose guests do not run. Their
//! memory is a shared file, which is changed here; QEMU's device-test protocol (docs/devel/testing/qtest.rst) writes to
//! each page a byte that is there already, which sets the page's dirty bit. The source stops before the switch-over, so
//! that the changed pages are sent as soon as it continues.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::json;

use super::{Pair, fresh, transferred};
use crate::case::{Encoding, Transport, Variant};
use crate::measured::TurnResult;
use crate::memory::{FIRST_CHANGED, Memory, PAGE};

/// Bandwidth limit of the rounds: so low that all pages are written again before a round ends, or QEMU would end the
/// rounds before its cache has each page. On a busy machine a lower limit is used.
const SLOW: u64 = 96 << 20;
/// Number of commands sent at once.
const AT_ONCE: usize = 256;

pub(super) fn run(memory: &Memory, transport: Transport, variant: Variant) -> TurnResult {
    let mut speeds = std::iter::successors(Some(SLOW), |speed| Some(speed / 2)).take(4);
    speeds
        .find_map(|speed| run_at(speed, memory, transport, variant))
        .expect("QEMU ends its rounds before its cache has all pages")
}

/// Runs with `speed` bytes a second in the rounds; `None` if the rounds ended too early.
fn run_at(speed: u64, memory: &Memory, transport: Transport, variant: Variant) -> Option<TurnResult> {
    let socket = fresh(memory, "qtest");
    let qtest = format!("unix:{},server=on,wait=off", socket.display());
    let mut pair = Pair::start(memory, transport, variant, true, &["-qtest", &qtest, "-qtest-log", "none"]);
    let mut pages = Pages::new(memory, UnixStream::connect(&socket).expect("QEMU's device tests"));
    if variant.encoding == Encoding::Xbzrle {
        pair.from.execute("migrate-set-parameters", json!({ "max-bandwidth": speed, "downtime-limit": 1 }));
        pair.migrate();
        if !fill_cache(&mut pair, &mut pages) {
            return None;
        }
    } else {
        pair.migrate();
    }
    pair.from.wait(&["pre-switchover"]);
    memory.change_file();
    pages.mark();
    let bytes = transferred(&pair.from.execute("query-migrate", json!({})));
    let (before, begun) = (pair.processor_time(), Instant::now());
    pair.from.execute("migrate-continue", json!({ "state": "pre-switchover" }));
    let figures = pair.from.wait(&["completed"]);
    Some(TurnResult {
        time: begun.elapsed(),
        cpu: pair.processor_time() - before,
        bytes: transferred(&figures) - bytes,
    })
}

/// Writes all pages again and again until QEMU has put each into its cache, which it does with pages that are not there
/// yet. False if the rounds ended before.
fn fill_cache(pair: &mut Pair, pages: &mut Pages) -> bool {
    loop {
        pages.mark();
        let figures = pair.from.execute("query-migrate", json!({}));
        if figures["xbzrle-cache"]["cache-miss"].as_u64().is_some_and(|misses| misses >= pages.count()) {
            return true;
        }
        if !matches!(figures["status"].as_str(), Some("setup" | "active")) {
            return false;
        }
    }
}

/// The pages that change, and the device-test connection that marks them dirty.
struct Pages {
    /// The first byte of each page, which does not change.
    first_bytes: Vec<u8>,
    stream: BufReader<UnixStream>,
}

impl Pages {
    fn new(memory: &Memory, stream: UnixStream) -> Self {
        let file = File::open(&memory.file).expect("the file");
        let first = |number: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, number * PAGE as u64).expect("inside");
            byte[0]
        };
        let first_bytes = (FIRST_CHANGED..memory.len / PAGE as u64).map(first).collect();
        Self { first_bytes, stream: BufReader::new(stream) }
    }

    fn count(&self) -> u64 {
        self.first_bytes.len() as u64
    }

    /// Lets QEMU write each page once, which marks the page dirty.
    fn mark(&mut self) {
        let mut line = String::new();
        for (group, bytes) in self.first_bytes.chunks(AT_ONCE).enumerate() {
            let first = FIRST_CHANGED + (group * AT_ONCE) as u64;
            let command = |(page, byte): (u64, &u8)| format!("writeb {:#x} {byte:#x}\n", page * PAGE as u64);
            let commands: String = (first..).zip(bytes).map(command).collect();
            self.stream.get_mut().write_all(commands.as_bytes()).expect("QEMU reads");
            for _ in bytes {
                line.clear();
                self.stream.read_line(&mut line).expect("QEMU answers");
                assert!(line.starts_with("OK"), "QEMU answers {line}");
            }
        }
    }
}
