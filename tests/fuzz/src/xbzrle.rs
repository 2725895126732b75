//! Target: the runs of an XBZRLE page, which follow the header of its record. Applied runs must give the page that a
//! byte-by-byte reader of the format computes; refused runs must leave the page unchanged, and no other page may
//! change. The resulting page must encode and decode as itself.

use std::sync::Mutex;

use vmstate::codec::{Limits, Reader, Strictness};
use vmstate::error::Result;
use vmstate::ram::{GuestRam, PAGE_SIZE, RamBlock};
use vmstate::raw::ram::RamReceiver;
use vmstate::raw::ram::xbzrle::{Encoded, Encoder, Page, changed_bytes, decode};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "xbzrle", memory: 1 << 20, body, seeds };

const PAGE: usize = PAGE_SIZE as usize;

/// Three pages, of which the middle one is received.
struct Ram {
    blocks: [RamBlock; 1],
    bytes: Mutex<Vec<u8>>,
}

impl GuestRam for Ram {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, _block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.bytes.lock().expect("one thread")[offset as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, _block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.bytes.lock().expect("one thread")[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        unreachable!("no zero page is sent")
    }
}

fn body(input: &[u8]) {
    let Ok(length) = u16::try_from(input.len()) else { return };
    let old: Page = std::array::from_fn(|at| (at % 7) as u8);
    let before = [[0xaa; PAGE], old, [0xbb; PAGE]].concat();
    let block = RamBlock { name: "ram".into(), len: 3 * PAGE_SIZE };
    let ram = Ram { blocks: [block], bytes: Mutex::new(before.clone()) };
    let record = [&(PAGE_SIZE | 0x40).to_be_bytes(), &b"\x03ram\x01"[..], &length.to_be_bytes(), input].concat();
    let mut reader = Reader::new(&record, 0, Strictness::Strict, Limits::default());
    let received = RamReceiver::new(&ram).read_records(&mut reader);
    let after = ram.bytes.into_inner().expect("one thread");
    match expected(input, &old).filter(|_| input.len() <= PAGE) {
        Some(new) => {
            received.expect("valid runs");
            assert!(
                after == [&before[..PAGE], &new, &before[2 * PAGE..]].concat(),
                "the page differs from the expected one"
            );
            again(&old, &new.try_into().expect("a page"));
        }
        None => {
            received.expect_err("invalid runs");
            assert!(after == before, "a page has changed");
        }
    }
}

/// Applies the runs naively: pairs of numbers, of unchanged bytes and of new bytes that follow. Only the first number
/// may be 0.
fn expected(runs: &[u8], old: &[u8]) -> Option<Vec<u8>> {
    let (mut new, mut runs) = (Vec::new(), runs.iter());
    while !runs.as_slice().is_empty() {
        let mut number = || match *runs.next()? {
            low @ 0..0x80 => Some(usize::from(low)),
            low => {
                runs.next().filter(|high| **high < 0x80).map(|high| usize::from(low) - 0x80 + 0x80 * usize::from(*high))
            }
        };
        let (equal, changed) = (number()?, number()?);
        if changed == 0 || (equal == 0 && !new.is_empty()) {
            return None;
        }
        new.extend_from_slice(old.get(new.len()..new.len() + equal)?);
        new.extend_from_slice(runs.as_slice().get(..changed)?);
        runs.nth(changed - 1);
        if new.len() > old.len() {
            return None;
        }
    }
    new.extend_from_slice(&old[new.len()..]);
    Some(new)
}

fn again(old: &Page, new: &Page) {
    match Encoder::default().encode(new, &changed_bytes(old, new)) {
        Encoded::Unchanged => assert!(old == new, "a change was not encoded"),
        Encoded::Runs(runs) => {
            let mut page = *old;
            decode(runs, &mut page, 0).expect("runs");
            assert!(runs.len() < PAGE && page == *new, "the encoded page decodes as another one");
        }
        Encoded::TooLong => {}
    }
}

fn seeds() -> Vec<Vec<u8>> {
    vec![vec![], vec![0, 1, 9], vec![0xc7, 1, 2, 2, 3, 5, 1, 4], [&[0, 0x80, 0x1f][..], &[3; 0xf80]].concat()]
}
