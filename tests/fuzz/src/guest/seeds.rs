//! Programs to begin with: each device started, used and moved, as a driver would.

use super::driver::operation::{
    DAMAGE, DESCRIPTOR, HOST, MOVE, NOTIFY, PAUSE_OR_RESUME, PUBLISH, READ, REQUEST, START, WRITE,
};
use super::driver::{FIRST_BYTES, IN_TABLE, LARGE};

/// Rings: event index, indirect tables.
const RINGS: u64 = 1 << 28 | 1 << 29;
/// All of a card but announcements, after which two devices differ.
const CARD: u64 = RINGS | 0x00ff_ffff & !(1 << 21);

const DISK: u8 = 0;
const NET: u8 = 1;
const SERIAL: u8 = 2;
const EVENTS: u8 = 3;
/// Bit of the first byte: rate limits.
const LIMITED: u8 = 1 << 2;

pub(super) fn all() -> Vec<Vec<u8>> {
    let disk = |features| {
        let mut program = start(features, 4);
        program.extend([move_on(0), write(0x5a, 1024, 2), read(1024, 2), move_on(1), command(4), move_on(0)].concat());
        program.extend([range(11, 2, 3, 0), range(13, 2, 3, 1), move_on(1), command(8), read(4096, 0)].concat());
        program
    };
    let card = |features| {
        let mut program = start(features, 4);
        program.extend([transmit(100), receive(2048), frame(500), move_on(0), control(&[0, 0, 1])].concat());
        program.extend([frame(3000), receive(1000), receive(1000), move_on(1), receive(2000), move_on(0)].concat());
        program.extend(
            [control(&[1, 1, 2, 0, 0, 0, 0, 9]), control(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), move_on(0)].concat(),
        );
        program
    };
    let mut paused = start(RINGS, 3);
    paused.extend([vec![PAUSE_OR_RESUME], write(1, 512, 0), move_on(1), vec![PAUSE_OR_RESUME | 0x10]].concat());
    let mut looped = start(0, 4);
    looped.extend([DESCRIPTOR, 0, 0, 0, 1, 0, 16, 0, 0, 0, 1, 0, PUBLISH, 0, NOTIFY, READ | 0x20, 0x70, 0, MOVE]);
    let mut damaged = start(RINGS, 4);
    damaged.extend([write(1, 512, 0), vec![DAMAGE, 100, 0, 1, DAMAGE, 90, 0, 0xff]].concat());
    // 1000 sectors: a request that is more than one piece of work, at a rate that it exceeds.
    let large_write = chain(0, LARGE, &header(1, 0), 64_002, 1);
    let large_read = chain(0, LARGE, &header(0, 0), 2, 64_001);
    let large = [start(RINGS | 1 << 9, 6), large_write, move_on(1), large_read, move_on(0), move_on(1)].concat();
    // Queues are ready before the features are agreed on.
    let mut early = start(0, 4);
    early.extend([register(0x70, 0), register(0x70, 3), register(0x24, 1), register(0x20, 1)].concat());
    early.extend([register(0x30, 0), register(0x38, 16), register(0x90, 0x2000), register(0xa0, 0x3000)].concat());
    early.extend([register(0x44, 1), register(0x24, 0), register(0x20, RINGS as u32), register(0x70, 15)].concat());
    early.extend([move_on(0), write(1, 512, 0), move_on(0), read(512, 0)].concat());
    vec![
        [vec![DISK], disk(0)].concat(),
        [vec![DISK], disk(RINGS | 0xffff)].concat(),
        [vec![DISK | LIMITED], disk(RINGS | 1 << 9)].concat(),
        [vec![DISK | LIMITED], large].concat(),
        [vec![DISK], paused].concat(),
        [vec![DISK], early].concat(),
        [vec![DISK], looped].concat(),
        [vec![DISK], damaged].concat(),
        [vec![NET], card(0)].concat(),
        [vec![NET], card(CARD)].concat(),
        [vec![NET], card(u64::MAX)].concat(),
        [vec![NET], card(CARD & !(1 << 2))].concat(),
        [vec![NET | LIMITED], card(CARD)].concat(),
        serial(),
        vec![EVENTS, 2, 3, 0x40, 0, 0, 0x11, 0, 2, 0x34, 0x13, 2, 0x11, 2, 2, 0x42, 3],
    ]
}

/// Interrupts, FIFO, output, input, loopback, and moves in between.
fn serial() -> Vec<u8> {
    let write = |register: u8, value| [register << 4 | 3, value];
    let read = |register: u8| [register << 4];
    let (input, moved) = ([0x35, b'a', b'b', b'c', b'd'], [7, 0x17]);
    let mut program = vec![SERIAL];
    program.extend([write(1, 0xf), write(2, 0xc7), write(0, b'x'), write(3, 0x83), write(0, 1)].concat());
    program.extend([&moved[..], &write(3, 3), &input, &read(2), &moved, &read(0), &read(5), &moved].concat());
    program.extend([&write(4, 0x1b)[..], &write(0, b'l'), &write(0, b'm'), &moved, &read(0), &read(6)].concat());
    program
}

fn operation(operation: u8, argument: u8) -> u8 {
    operation | argument << 4
}

fn start(features: u64, log2_size: u8) -> Vec<u8> {
    [&[operation(START, log2_size)][..], &features.to_le_bytes()].concat()
}

fn register(register: u8, value: u32) -> Vec<u8> {
    [&[operation(WRITE, 0), register / 4][..], &value.to_le_bytes()].concat()
}

fn move_on(to_copy: u8) -> Vec<u8> {
    vec![operation(MOVE, to_copy)]
}

fn chain(queue: u8, pieces: u8, first: &[u8], reads: u16, writes: u16) -> Vec<u8> {
    let mut first = first.to_vec();
    first.resize(FIRST_BYTES.min(reads.into()), 0x77);
    [&[operation(REQUEST, queue), pieces][..], &reads.to_le_bytes(), &writes.to_le_bytes(), &first].concat()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn write(sector: u64, bytes: u16, pieces: u8) -> Vec<u8> {
    chain(0, pieces, &header(1, sector), 16 + bytes, 1)
}

fn read(bytes: u16, pieces: u8) -> Vec<u8> {
    chain(0, pieces << 2 | IN_TABLE, &header(0, 3), 16, bytes + 1)
}

fn command(kind: u32) -> Vec<u8> {
    chain(0, 0, &header(kind, 0), 16, 21)
}

/// Discard or write-zeroes.
fn range(kind: u32, sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let range = [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat();
    chain(0, 1, &[header(kind, 0), range].concat(), 32, 1)
}

fn transmit(bytes: u16) -> Vec<u8> {
    chain(1, 1, &[0; 12], bytes, 0)
}

fn receive(bytes: u16) -> Vec<u8> {
    chain(0, 4, &[], 0, bytes)
}

fn control(command: &[u8]) -> Vec<u8> {
    chain(2, 1, command, command.len() as u16, 1)
}

fn frame(len: u16) -> Vec<u8> {
    [&[HOST][..], &len.to_le_bytes()].concat()
}
