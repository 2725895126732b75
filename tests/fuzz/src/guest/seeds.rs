//! Seeds: programs that start, use and move each device as a driver does.

use super::chains::{FIRST_BYTES, IN_TABLE, LARGE, POLITE, TO_DRIVER};
use super::driver::operation::{
    DAMAGE, DESCRIPTOR, HOST, LONG_CHAIN, MOVE, NOTIFY, PAUSE_OR_RESUME, PUBLISH, READ, REQUEST, START, STORE, WRITE,
    WRITE_BYTES,
};
use super::ports;

/// Features of rings: event index, indirect tables.
const RINGS: u64 = 1 << 28 | 1 << 29;
/// All features of a card but announcements, which make two devices differ.
const CARD: u64 = RINGS | 0x00ff_ffff & !(1 << 21);

const DISK: u8 = 0;
const NET: u8 = 1;
const SERIAL: u8 = 2;
const EVENTS: u8 = 3;
/// Operation of a serial port that moves the guest.
const MOVE_PORT: u8 = 7;
/// Bit of the first byte: rate limits.
const LIMITED: u8 = 1 << 2;
/// Bits of the first byte for a disk: read-only; writes fail.
const READ_ONLY: u8 = 1 << 3;
const SEALED: u8 = 1 << 4;

pub(super) fn all() -> Vec<Vec<u8>> {
    let disk = |features| {
        let mut program = start(features, 4);
        program.extend([move_on(0), write(0x5a, 1024, 2), read(1024, 8), move_on(1), command(4), move_on(0)].concat());
        program.extend([range(11, 2, 3, 0), range(13, 2, 3, 1), move_on(1), command(8), read(4096, 0)].concat());
        program
    };
    let card = |features| {
        let mut program = start(features, 4);
        program.extend([transmit(100, 0), receive(2048, 0), frame(500), move_on(0), control(&[0, 0, 1], 0)].concat());
        program.extend(
            [frame(3000), receive(1000, 0), receive(1000, 0), move_on(1), receive(2000, 0), move_on(0)].concat(),
        );
        program.extend(
            [control(&[1, 1, 2, 0, 0, 0, 0, 9], 0), control(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], 0), move_on(0)].concat(),
        );
        for mode in 0..6 {
            program.extend(control(&[0, mode, 1], 0));
        }
        program.extend([control(&[2, 0, 9, 0], 0), control(&[2, 2, 9, 0], 0)].concat());
        // A filter of one address and one group, a VLAN, an announcement's acknowledgement that the device did not ask
        // for.
        let filter = [1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 1, 0, 0, 0, 3, 3, 3, 3, 3, 3];
        program.extend([control(&filter, 0), control(&[2, 1, 9, 0], 0), control(&[3, 0], 0), move_on(1)].concat());
        program
    };
    let mut paused = start(RINGS, 3);
    paused.extend([vec![PAUSE_OR_RESUME], write(1, 512, 0), move_on(1), vec![PAUSE_OR_RESUME | 0x10]].concat());
    let mut looped = start(0, 4);
    looped.extend([DESCRIPTOR, 0, 0, 0, 1, 0, 16, 0, 0, 0, 1, 0, PUBLISH, 0, NOTIFY, READ | 0x20, 0x70, 0, MOVE]);
    let mut damaged = start(RINGS, 4);
    damaged.extend([write(1, 512, 0), vec![DAMAGE, 100, 0, 1, DAMAGE, 90, 0, 0xff, DAMAGE, 12, 0, 8]].concat());
    // 600 sectors: a request that takes more than one piece of work, and exceeds the rate limit.
    let large_write = chain(0, LARGE, &header(1, 0), 38_402, 1);
    let large_read = chain(0, LARGE, &header(0, 0), 2, 38_401);
    let large = [start(RINGS | 1 << 9, 6), large_write, move_on(1), large_read, move_on(0), move_on(1)].concat();
    // Queues are ready before the features are negotiated.
    let mut early = start(0, 4);
    early.extend([register(0x70, 0), register(0x70, 3), register(0x24, 1), register(0x20, 1)].concat());
    early.extend([register(0x30, 0), register(0x38, 16), register(0x90, 0x2000), register(0xa0, 0x3000)].concat());
    early.extend([register(0x44, 1), register(0x24, 0), register(0x20, RINGS as u32), register(0x70, 15)].concat());
    early.extend([move_on(0), write(1, 512, 0), move_on(0), read(512, 0)].concat());
    // A driver that notifies the device only when asked; then a driver that stops after each step of its
    // initialization.
    let polite = |features| {
        let (mut disk, mut card) = (start(features, 4), start(features | 1 << 17, 4));
        for (sector, to_copy) in [(1, 0), (2, 1), (3, 0)] {
            disk.extend([write(sector, 512, POLITE), move_on(to_copy), read(1024, POLITE)].concat());
            card.extend([transmit(90, POLITE), receive(600, POLITE), frame(700), move_on(to_copy)].concat());
            card.extend([receive(600, POLITE), frame(80), control(&[0, 0, 1], POLITE), frame(80)].concat());
        }
        (disk, card)
    };
    let (polite_disk, polite_card) = polite(0);
    let (polite_disk_with_index, polite_card_with_index) = polite(RINGS | 1 << 15);
    let slow: Vec<u8> = (11..=15).flat_map(|step| [start(u64::MAX, step), move_on(1), vec![NOTIFY]].concat()).collect();
    let slow = [&slow[..], &register(0x70, 15), &move_on(0), &write(1, 512, 0), &transmit(100, 0), &frame(50)].concat();
    // Write-through mode, selected by the driver.
    let mut chosen = start(RINGS | 1 << 9 | 1 << 11, 4);
    chosen.extend([vec![WRITE_BYTES | 0x10, 0x20, 1, 0], move_on(0), write(1, 512, 0), move_on(1)].concat());
    chosen.extend([vec![WRITE_BYTES | 0x10, 0x20, 1, 1], write(1, 512, 0), range(13, 2, 3, 0), move_on(0)].concat());
    let long = |queue| {
        let chain = |how: u8, count: u16| {
            [&[operation(LONG_CHAIN, queue | how)][..], &count.to_le_bytes(), &[8], &header(0, 1), &[0; 16]].concat()
        };
        let few =
            [start(RINGS | 1 << 2 | 1 << 15, 5), chain(TO_DRIVER, 64), frame(300), chain(0, 3), move_on(0)].concat();
        let many =
            [start(RINGS, 5), chain(TO_DRIVER, 300), frame(900), move_on(1), chain(0, 300), chain(0, 1500)].concat();
        [few, many].concat()
    };
    // Buffers that wrap around or are outside of memory; rings outside of memory; a used index that is not the
    // device's.
    let outside = |high: u32| {
        let buffer =
            [&0xffff_f000u32.to_le_bytes()[..], &high.to_le_bytes(), &0x2000u32.to_le_bytes(), &[2, 0]].concat();
        let header = [&[DESCRIPTOR, 0][..], &0x1_0000u32.to_le_bytes(), &16u32.to_le_bytes(), &[1, 1]].concat();
        let data = [&[operation(DESCRIPTOR, 8), 1][..], &buffer].concat();
        [start(0, 4), header, data, vec![PUBLISH, 0, NOTIFY], move_on(0)].concat()
    };
    let mut elsewhere = start(0, 13);
    elsewhere.extend([register(0x38, 16), register(0x90, 0x7fff_0000), register(0xa0, 0x3000)].concat());
    elsewhere.extend([register(0x44, 1), register(0x70, 15), move_on(0)].concat());
    let used = [&[STORE][..], &0x3002u32.to_le_bytes(), &[2, 0, 0x10]].concat();
    let used = [start(0, 4), write(1, 512, 0), used, move_on(0), write(1, 512, 0), move_on(1)].concat();
    vec![
        [vec![DISK], chosen.clone()].concat(),
        [vec![DISK | READ_ONLY], chosen].concat(),
        [vec![DISK], long(0)].concat(),
        [vec![NET], long(0), long(1)].concat(),
        [vec![DISK], outside(0)].concat(),
        [vec![DISK], outside(u32::MAX)].concat(),
        [vec![DISK], elsewhere].concat(),
        [vec![DISK], used].concat(),
        [vec![DISK], polite_disk].concat(),
        [vec![DISK], polite_disk_with_index].concat(),
        [vec![NET], polite_card].concat(),
        [vec![NET], polite_card_with_index].concat(),
        [vec![DISK], slow.clone()].concat(),
        [vec![NET], slow].concat(),
        [vec![DISK | SEALED], disk(RINGS)].concat(),
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
        serial(&[MOVE_PORT]),
        serial(&[MOVE_PORT, MOVE_PORT | 0x10]),
        vec![EVENTS, 2, 3, 0x40, 0, 0, 0x11, 0, 2, 0x34, 0x13, 2, 0x11, 2, 2, 0x42, 3, ports::DAMAGE, 3, 0, 2],
    ]
}

/// Interrupts, FIFO, output, input and loopback, with moves in between.
fn serial(moved: &[u8]) -> Vec<u8> {
    let write = |register: u8, value| [register << 4 | 3, value];
    let read = |register: u8| [register << 4];
    let input = [0x35, b'a', b'b', b'c', b'd'];
    let mut program = vec![SERIAL];
    program.extend([write(1, 0xf), write(2, 0xc7), write(0, b'x'), write(3, 0x83), write(0, 1)].concat());
    program.extend([moved, &write(3, 3), &input, &read(2), moved, &read(0), &read(5), moved].concat());
    program.extend([ports::DAMAGE, 9, 0, 1]);
    program.extend([&write(4, 0x1b)[..], &write(0, b'l'), &write(0, b'm'), moved, &read(0), &read(6)].concat());
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
    chain(0, pieces | IN_TABLE, &header(0, 3), 16, bytes + 1)
}

fn command(kind: u32) -> Vec<u8> {
    chain(0, 0, &header(kind, 0), 16, 21)
}

/// A discard or write-zeroes request.
fn range(kind: u32, sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let range = [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat();
    chain(0, 1, &[header(kind, 0), range].concat(), 32, 1)
}

fn transmit(bytes: u16, how: u8) -> Vec<u8> {
    chain(1, 1 | how, &[0; 12], bytes, 0)
}

fn receive(bytes: u16, how: u8) -> Vec<u8> {
    chain(0, 4 | how, &[], 0, bytes)
}

fn control(command: &[u8], how: u8) -> Vec<u8> {
    chain(2, 1 | how, command, command.len() as u16, 1)
}

fn frame(len: u16) -> Vec<u8> {
    [&[HOST][..], &len.to_le_bytes()].concat()
}
