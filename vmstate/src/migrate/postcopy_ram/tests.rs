//! Missing pages, with a memory that records its calls.

use super::*;
use crate::stream::Stretch;

/// One block, and all adopted ones; records its calls.
#[derive(Default)]
struct RecordingRam {
    blocks: Vec<RamBlock>,
    calls: Mutex<Vec<String>>,
    unable: bool,
}

impl RecordingRam {
    fn note(&self, what: String) -> Result<()> {
        self.calls.lock().unwrap().push(what);
        Ok(())
    }

    fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl GuestRam for RecordingRam {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn adopt(&self, _name: &str, _len: u64) -> Result<bool> {
        Ok(true)
    }

    fn postcopy(&self) -> Option<&dyn PostcopyMemory> {
        Some(self)
    }

    fn read(&self, _block: usize, _offset: u64, _into: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, _from: &[u8]) -> Result<()> {
        self.note(format!("write {block} {offset:#x}"))
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.note(format!("zero {block} {offset:#x}"))
    }
}

impl PostcopyMemory for RecordingRam {
    fn prepare(&self) -> Result<()> {
        if self.unable { Err(Error::new(ErrorKind::Rejected, "not on this host")) } else { Ok(()) }
    }

    fn discard(&self, block: usize, offset: u64, len: u64) -> Result<()> {
        self.note(format!("discard {block} {offset:#x} {len:#x}"))
    }

    fn listen(&self) -> Result<()> {
        Ok(())
    }

    fn waited_for(&self, pages: &mut Vec<(usize, u64)>) -> Result<()> {
        pages.extend([(1, 0x1000), (2, 0)]);
        Ok(())
    }

    fn put(&self, block: usize, offset: u64, page: Option<&[u8; PAGE]>) -> Result<()> {
        self.note(format!("put {block} {offset:#x} {}", page.is_some()))
    }

    fn end_waits(&self) -> Result<()> {
        self.note("end_waits".to_owned())
    }
}

fn recording_ram(unable: bool) -> RecordingRam {
    let blocks = vec![RamBlock { name: "main.ram".into(), len: 0x2000 }];
    RecordingRam { blocks, unable, ..RecordingRam::default() }
}

#[test]
fn pages_of_adopted_blocks_may_be_missing_too() {
    let ram = recording_ram(false);
    let memory = PostcopyRam::new(&ram);
    // One block before the announcement, one after it.
    assert!(memory.adopt("pc.bios", 0x2000).unwrap());
    memory.advise(None).unwrap();
    assert!(memory.adopt("pc.rom", 0x1000).unwrap());
    let page = [7; PAGE];
    (0..2).for_each(|block| memory.write(block, 0, &page).unwrap());
    memory.write(1, 0x1000, &page).unwrap();
    let discard = |start| Discard { block: "pc.bios".into(), stretches: vec![Stretch { start, len: 0x1000 }] };
    memory.discard(&discard(0x1000)).unwrap();
    memory.discard(&discard(0x2000)).unwrap_err();
    memory.listen().unwrap();
    ram.take_calls();
    // Each page is requested once.
    for asked in [true, false] {
        let mut requests = Vec::new();
        memory.put_requests(&mut requests).unwrap();
        for name in [&b"pc.bios"[..], b"pc.rom"] {
            assert_eq!(requests.windows(name.len()).any(|bytes| bytes == name), asked, "{requests:x?}");
        }
    }
    assert!(ram.take_calls().is_empty());
    // Again over another connection, with the names again, and the bitmap of received pages: bit 0 of two.
    let mut again = Vec::new();
    memory.ask_again(&mut again).unwrap();
    let request = |start: &[u8; 2], name: &[u8]| {
        let length = [0, 3, 0, 13 + name.len() as u8];
        [&length[..], &[0; 6], start, b"\0\0\x10\0", &[name.len() as u8], name].concat()
    };
    assert_eq!(again, [request(b"\x10\0", b"pc.bios"), request(b"\0\0", b"pc.rom")].concat());
    let received = |name| memory.received(name).map(|pages| pages.words().to_vec());
    assert_eq!(
        [received("main.ram").unwrap(), received("pc.bios").unwrap(), received("pc.rom").unwrap()],
        [[1], [1], [0]]
    );
    assert!(received("none").unwrap_err().to_string().contains("RAM block none, which does not exist here"));
    let lacks = memory.end().unwrap_err().to_string();
    assert!(lacks.contains("3 pages of the guest did not arrive"), "{lacks}");
    memory.write(1, 0x1000, &page).unwrap();
    memory.write(1, 0x1000, &page).unwrap();
    memory.zero_run(0, 0, 2).unwrap();
    memory.zero_run(2, 0, 1).unwrap();
    // The zero page of block 0 is not stored, because no access waits for it.
    assert_eq!(ram.take_calls(), ["put 1 0x1000 true", "put 2 0x0 false"]);
    // The page has arrived: accesses that still wait are woken.
    memory.put_requests(&mut Vec::new()).unwrap();
    memory.end().unwrap();
    assert_eq!(ram.take_calls(), ["put 1 0x1000 false", "put 2 0x0 false", "end_waits"]);
}

/// The pages by hand: the guest shall wait only for page 4, which has not arrived.
#[test]
fn zero_pages_are_stored_when_accesses_wait_and_when_the_connection_breaks() {
    let blocks = ["low", "waited", "also"].map(|name| RamBlock { name: name.into(), len: 0x6000 });
    let ram = RecordingRam { blocks: blocks.into(), ..RecordingRam::default() };
    let memory = PostcopyRam::new(&ram);
    memory.advise(None).unwrap();
    // Before the memory listens: pages 0 to 3 are zero, then 1 has contents, and 2 is dropped.
    memory.zero_run(0, 0, 4).unwrap();
    memory.write(0, 0x1000, &[7; PAGE]).unwrap();
    let stretches = vec![Stretch { start: 0x2000, len: 0x1000 }];
    memory.discard(&Discard { block: "low".into(), stretches }).unwrap();
    memory.listen().unwrap();
    ram.take_calls();
    memory.zero_run(0, 0x2000, 1).unwrap();
    memory.zero_run(0, 0x5000, 1).unwrap();
    // A second time, when the guest may have written it, and a page that has contents.
    memory.zero_run(0, 0, 2).unwrap();
    // Accesses wait for page 1 of block 1, and page 0 of block 2: before the page arrives, and after.
    memory.zero_run(2, 0, 2).unwrap();
    memory.put_requests(&mut Vec::new()).unwrap();
    memory.zero_run(1, 0, 3).unwrap();
    assert_eq!(ram.take_calls(), ["put 2 0x0 false", "put 1 0x1000 false"]);
    memory.store_zeros().unwrap();
    let stored = [(0, 0), (0, 2), (0, 3), (0, 5), (1, 0), (1, 2), (2, 1)];
    assert_eq!(ram.take_calls(), stored.map(|(block, page)| format!("put {block} {:#x} false", page << 12)));
    memory.store_zeros().unwrap();
    assert!(ram.take_calls().is_empty(), "once");
}

#[test]
fn memory_reports_why_it_does_not_support_post_copy() {
    let refused = PostcopyRam::new(&recording_ram(true)).advise(None).unwrap_err().to_string();
    assert_eq!(refused, "post-copy: not on this host: turn capability postcopy-ram off at the source");
}
