//! The contents of a source's outbox arrive byte for byte, however the channel divides them.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;
use vmstate::channel::{Channel, SocketChannel};
use vmstate::codec::{Outbox, PageRun, Piece};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::ram::{GuestRam, PAGE_SIZE, RamBlock};

const PAGES: u64 = 200;
const LONG: Duration = Duration::from_secs(20);

/// Two blocks. Accesses to anything but whole pages are refused.
struct Ram {
    blocks: Vec<RamBlock>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl Ram {
    /// Memory filled with `bytes` in both blocks.
    fn new(bytes: Vec<u8>) -> Self {
        let len = PAGES * PAGE_SIZE;
        let blocks = ["low", "high"].map(|name| RamBlock { name: name.to_owned(), len }).to_vec();
        Self { blocks, bytes: Mutex::new(vec![bytes; 2]) }
    }

    /// Memory in which no two pages are equal, and no page equals another at any byte offset.
    fn patterned() -> Self {
        let one: Vec<u8> = (0..PAGE_SIZE).map(|at| ((at * 7) ^ (at >> 8)) as u8).collect();
        let ram = Self::new((0..PAGES).flat_map(|number| one.iter().map(move |byte| byte ^ number as u8)).collect());
        ram.bytes.lock().unwrap()[1].rotate_left(1234);
        ram
    }

    fn whole(offset: u64, len: usize) -> Result<()> {
        if len > 0 && offset.is_multiple_of(PAGE_SIZE) && (len as u64).is_multiple_of(PAGE_SIZE) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Misuse, format!("{len} bytes at {offset:#x} are not whole pages")))
    }

    fn copy(&self, run: PageRun) -> Vec<u8> {
        self.bytes.lock().unwrap()[run.block][run.offset as usize..][..run.len as usize].to_vec()
    }
}

impl GuestRam for Ram {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        Self::whole(offset, into.len())?;
        let bytes = self.bytes.lock().unwrap();
        let block = bytes.get(block).ok_or_else(|| Error::new(ErrorKind::Misuse, "no such block"))?;
        into.copy_from_slice(&block[offset as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        Self::whole(offset, from.len())?;
        self.bytes.lock().unwrap()[block][offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        unreachable!("no page of zeros is sent here")
    }
}

/// A channel that sends and receives a given number of bytes at once, without a descriptor.
struct Narrow {
    bytes: Vec<u8>,
    received: usize,
    widths: Vec<usize>,
    calls: usize,
}

impl Narrow {
    fn new(widths: &[usize]) -> Self {
        Self { bytes: Vec::new(), received: 0, widths: widths.to_vec(), calls: 0 }
    }

    fn width(&mut self) -> usize {
        self.calls += 1;
        self.widths[self.calls % self.widths.len()]
    }
}

impl Channel for Narrow {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        let count = self.width().min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        let count = self.width().min(into.len()).min(self.bytes.len() - self.received);
        into[..count].copy_from_slice(&self.bytes[self.received..][..count]);
        self.received += count;
        Ok(count)
    }
}

fn run() -> impl Strategy<Value = PageRun> {
    (0..2_usize, 0..PAGES, 1..90_u64).prop_map(|(block, first, pages)| PageRun {
        block,
        offset: first * PAGE_SIZE,
        len: pages.min(PAGES - first) * PAGE_SIZE,
    })
}

#[derive(Clone, Debug)]
enum Put {
    Bytes(Vec<u8>),
    Pages(PageRun),
}

fn put() -> impl Strategy<Value = Put> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Put::Bytes),
        // More than is copied at once.
        (260_000..300_000_usize).prop_map(|len| Put::Bytes(vec![0xab; len])),
        run().prop_map(Put::Pages),
    ]
}

fn filled(ram: &Ram, puts: &[Put]) -> (Outbox, Vec<u8>) {
    let (mut outbox, mut flat) = (Outbox::new(), Vec::new());
    for put in puts {
        match put {
            Put::Bytes(bytes) => {
                outbox.put(bytes);
                flat.extend_from_slice(bytes);
            }
            Put::Pages(run) => {
                outbox.put_pages(*run);
                flat.extend_from_slice(&ram.copy(*run));
            }
        }
    }
    (outbox, flat)
}

fn left(ram: &Ram, outbox: &Outbox) -> Vec<u8> {
    let mut left = Vec::new();
    for piece in outbox.pieces() {
        match piece {
            Piece::Bytes(bytes) => left.extend_from_slice(bytes),
            Piece::Pages(run) => left.extend_from_slice(&ram.copy(run)),
        }
    }
    left
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_after_any_number_of_bytes_is_the_rest(
        puts in prop::collection::vec(put(), 0..6),
        steps in prop::collection::vec(prop_oneof![0..20_u64, 0..700_000_u64], 1..20),
    ) {
        let ram = Ram::patterned();
        let (mut outbox, flat) = filled(&ram, &puts);
        let mut gone = 0;
        for step in steps {
            prop_assert_eq!(outbox.len() as usize, flat.len() - gone);
            prop_assert_eq!(outbox.is_empty(), gone == flat.len());
            prop_assert!(left(&ram, &outbox) == flat[gone..], "{} of {} bytes are gone", gone, flat.len());
            let step = step.min(outbox.len());
            outbox.advance(step);
            gone += step as usize;
        }
        outbox.clear();
        prop_assert!(outbox.is_empty() && outbox.pieces().next().is_none());
    }

    #[test]
    fn a_channel_without_a_descriptor_gets_copies_of_whole_pages(
        puts in prop::collection::vec(put(), 1..6),
        widths in prop::collection::vec(1000_usize..600_000, 1..5),
    ) {
        let ram = Ram::patterned();
        let (mut outbox, flat) = filled(&ram, &puts);
        let mut channel = Narrow::new(&widths);
        while !outbox.is_empty() {
            let count = channel.send_outbox(&outbox, &ram, LONG).unwrap();
            prop_assert!(count > 0);
            outbox.advance(count as u64);
        }
        prop_assert!(channel.bytes == flat);
    }

    #[test]
    fn pages_arrive_where_they_should_and_nowhere_else(
        runs in prop::collection::vec(run(), 1..4),
        widths in prop::collection::vec(1000_usize..600_000, 1..5),
        by_socket in any::<bool>(),
    ) {
        // Of two overlapping runs, the later one stays.
        let (source, target) = (Ram::patterned(), Ram::new(vec![0x55; (PAGES * PAGE_SIZE) as usize]));
        let mut expected = target.bytes.lock().unwrap().clone();
        let bytes = runs.iter().map(|run| source.copy(*run)).collect::<Vec<_>>().concat();
        let mut taken = 0;
        for run in &runs {
            expected[run.block][run.offset as usize..][..run.len as usize]
                .copy_from_slice(&bytes[taken..][..run.len as usize]);
            taken += run.len as usize;
        }
        let mut runs = runs;
        let mut rest = runs.as_mut_slice();
        let mut receive = |channel: &mut dyn Channel| {
            while !rest.is_empty() {
                let count = channel.receive_pages(rest, &target, LONG).unwrap();
                assert!(count > 0);
                PageRun::advance_slices(&mut rest, count as u64);
            }
        };
        if by_socket {
            let (here, there) = UnixStream::pair().unwrap();
            let sender = std::thread::spawn(move || io::Write::write_all(&mut &here, &bytes).unwrap());
            receive(&mut SocketChannel::try_from(there).unwrap());
            sender.join().unwrap();
        } else {
            let mut channel = Narrow::new(&widths);
            channel.bytes = bytes;
            receive(&mut channel);
            prop_assert_eq!(channel.received, channel.bytes.len());
        }
        prop_assert!(*target.bytes.lock().unwrap() == expected);
    }
}

/// The peer reads nothing until the socket is full.
#[test]
fn a_full_socket_takes_what_it_can_and_the_rest_later() {
    let ram = Ram::patterned();
    let all = |block| Put::Pages(PageRun { block, offset: 0, len: PAGES * PAGE_SIZE });
    // More than any socket holds.
    let puts = [Put::Bytes(vec![1; 9]), all(0), Put::Bytes(vec![2; 9]), all(1)];
    let (mut outbox, flat) = filled(&ram, &[puts.as_slice(); 8].concat());
    let (here, there) = UnixStream::pair().unwrap();
    let mut channel = SocketChannel::try_from(here).unwrap();
    let full = loop {
        match channel.send_outbox(&outbox, &ram, Duration::ZERO) {
            Ok(0) => panic!("the socket was never full"),
            Ok(count) => outbox.advance(count as u64),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::TimedOut);
    assert!(!outbox.is_empty() && outbox.len() < flat.len() as u64);
    let len = flat.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len];
        io::Read::read_exact(&mut &there, &mut got).map(|()| got)
    });
    while !outbox.is_empty() {
        let count = channel.send_outbox(&outbox, &ram, LONG).unwrap();
        outbox.advance(count as u64);
    }
    assert!(reader.join().unwrap().unwrap() == flat);
}

#[test]
fn pages_that_follow_each_other_are_one_piece_unless_bytes_are_between() {
    let page = |page: u64| PageRun { block: 0, offset: page * PAGE_SIZE, len: PAGE_SIZE };
    let mut outbox = Outbox::new();
    for number in [3, 4, 5, 7] {
        outbox.put_pages(page(number));
    }
    outbox.put(b"x");
    outbox.put_pages(page(8));
    outbox.put_pages(PageRun { block: 1, ..page(9) });
    let expected = [
        Piece::Pages(PageRun { len: 3 * PAGE_SIZE, ..page(3) }),
        Piece::Pages(page(7)),
        Piece::Bytes(b"x"),
        Piece::Pages(page(8)),
        Piece::Pages(PageRun { block: 1, ..page(9) }),
    ];
    assert!(outbox.pieces().eq(expected));
}

/// An error of guest memory is not an error of the channel.
#[test]
fn an_error_of_memory_is_passed_on_unchanged() {
    let ram = Ram::patterned();
    let mut outbox = Outbox::new();
    outbox.put_pages(PageRun { block: 9, offset: 0, len: PAGE_SIZE });
    let refused = Narrow::new(&[1]).send_outbox(&outbox, &ram, LONG).unwrap_err();
    assert_eq!(refused.downcast::<Error>().unwrap().kind(), ErrorKind::Misuse);
}
