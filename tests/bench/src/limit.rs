//! Measures the limits of the machine: the same memory, without any protocol.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use minivmm::memory::Ram;
use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use vmstate::channel::{Channel, SocketChannel};
use vmstate::codec::{Outbox, PageRun};
use vmstate::ram::GuestRam;

use crate::case::{Limit, Transport};
use crate::engine::listen;
use crate::measured::{TurnResult, processor_time};
use crate::memory::{Ends, MIB, PAGE};

const WAIT: Duration = Duration::from_secs(10);
/// Bytes copied at once: far more than any cache holds.
const COPIED: usize = 64 << 20;
/// Number of pages that a word of a bitmap covers.
const GROUP: u32 = u64::BITS;

pub(crate) fn run(limit: Limit, ends: &Ends, transport: Transport) -> TurnResult {
    let source = MachineRam::leaving(ends.source.clone(), &Firmware::default(), false);
    let target = MachineRam::arriving(ends.target.clone(), Firmware::default());
    let len = ends.source.len();
    match limit {
        Limit::Sockets(count) => {
            let (listener, connect) = listen(transport);
            let mut pairs: Vec<_> = (0..count)
                .map(|_| {
                    let sending = connect();
                    (sending, listener.accept(WAIT).expect("a connection"))
                })
                .collect();
            let (source, target) = (&source, &target);
            measured(|| {
                thread::scope(|scope| {
                    for (number, (sending, receiving)) in pairs.iter_mut().enumerate() {
                        scope.spawn(move || receive(receiving, target, share(len, count, number)));
                        scope.spawn(move || send(sending, source, share(len, count, number)));
                    }
                });
            })
        }
        Limit::Copy => {
            let (from, mut to) = (vec![1_u8; COPIED], vec![2_u8; COPIED]);
            measured(|| {
                for offset in (0..len as usize).step_by(COPIED) {
                    let count = COPIED.min(len as usize - offset);
                    to[..count].copy_from_slice(&from[..count]);
                    black_box(&mut to);
                }
            })
        }
        Limit::Scan => measured(|| scan(&source, len)),
        Limit::ScanBoth => measured(|| {
            thread::scope(|scope| {
                scope.spawn(|| scan(&source, len));
                scan(&target, len);
            });
        }),
        Limit::Ask => measured(|| ask(&ends.source)),
    }
}

/// Time and processor time of `work`, which runs once.
fn measured(work: impl FnOnce()) -> TurnResult {
    let before = processor_time(std::process::id());
    let begun = Instant::now();
    work();
    TurnResult { time: begun.elapsed(), cpu: processor_time(std::process::id()) - before, bytes: 0 }
}

/// The runs of pages, a MiB each, that socket `number` of `count` transfers.
fn share(len: u64, count: u8, number: usize) -> impl Iterator<Item = PageRun> {
    let all = (0..len).step_by(MIB as usize).map(|offset| PageRun { block: 0, offset, len: MIB });
    all.skip(number).step_by(count.into())
}

fn send(channel: &mut SocketChannel, memory: &MachineRam, runs: impl Iterator<Item = PageRun>) {
    let mut out = Outbox::new();
    for run in runs {
        out.put_pages(run);
        while !out.is_empty() {
            let count = channel.send_outbox(&out, memory, WAIT).expect("a reader");
            out.advance(count as u64);
        }
        out.clear();
    }
}

fn receive(channel: &mut SocketChannel, memory: &MachineRam, runs: impl Iterator<Item = PageRun>) {
    for run in runs {
        let all = &mut [run];
        let mut left: &mut [PageRun] = all;
        while !left.is_empty() {
            let count = channel.receive_pages(left, memory, WAIT).expect("all of it");
            PageRun::advance_slices(&mut left, count as u64);
        }
    }
}

fn scan(memory: &MachineRam, len: u64) {
    for offset in (0..len).step_by(PAGE * GROUP as usize) {
        black_box(memory.zero_pages(0, offset, GROUP).expect("inside"));
    }
}

fn ask(ram: &Ram) {
    let mut words = vec![0; (ram.len() / PAGE as u64 / u64::from(GROUP)) as usize];
    ram.untouched(0, &mut words).expect("inside");
    black_box(words);
}
