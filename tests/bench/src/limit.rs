//! The same memory through the same socket without protocol or copy: as fast as it can be.

use std::thread;
use std::time::{Duration, Instant};

use minivmm::memory::Ram;
use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use vmstate::channel::{Channel, SocketChannel};
use vmstate::codec::{Outbox, PageRun};

use crate::case::Transport;
use crate::engine::listen;
use crate::measured::{Taken, processor_time};
use crate::memory::{MIB, Memory};

const WAIT: Duration = Duration::from_secs(10);

/// A MiB at a time from memory to memory.
pub(crate) fn socket(memory: &Memory, transport: Transport) -> Taken {
    let (listener, connect) = listen(transport);
    let before = processor_time(std::process::id());
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| receive(&mut listener.accept(WAIT).expect("a connection"), &memory.target));
        send(&mut connect(), &memory.source);
    });
    Taken { time: begun.elapsed(), cpu: processor_time(std::process::id()) - before }
}

fn runs(ram: &Ram) -> impl Iterator<Item = PageRun> + use<> {
    (0..ram.len()).step_by(MIB as usize).map(|offset| PageRun { block: 0, offset, len: MIB })
}

fn send(channel: &mut SocketChannel, ram: &Ram) {
    let memory = MachineRam::leaving(ram.clone(), &Firmware::default(), false);
    let mut out = Outbox::new();
    for run in runs(ram) {
        out.put_pages(run);
        while !out.is_empty() {
            let count = channel.send_outbox(&out, &memory, WAIT).expect("a reader");
            out.advance(count as u64);
        }
        out.clear();
    }
}

fn receive(channel: &mut SocketChannel, ram: &Ram) {
    let memory = MachineRam::arriving(ram.clone(), Firmware::default());
    for run in runs(ram) {
        let all = &mut [run];
        let mut left: &mut [PageRun] = all;
        while !left.is_empty() {
            let count = channel.receive_pages(left, &memory, WAIT).expect("all of it");
            PageRun::advance_slices(&mut left, count as u64);
        }
    }
}
