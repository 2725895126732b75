//! Section `minivmm/ownership`: the guest's exclusive resources at the source, sent before the first page.

use std::sync::{Arc, Mutex};

use vmstate::VmState;
use vmstate::ownership::{Record, Role, Ticket};

/// Most disks of a machine.
const DISKS_MAX: u8 = 8;
/// Most tickets: one for each disk, and the lease's.
const TICKETS_MAX: usize = DISKS_MAX as usize + 1;

/// The section, shared between its registry and the thread that fills or reads it.
pub type SharedTickets = Arc<Mutex<Tickets>>;

/// Section `minivmm/ownership`, version 1.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/ownership", version = 1, early_setup, needed = Self::is_present, post_load = Self::note)]
pub struct Tickets {
    count: u32,
    #[vmstate(len = count, max = TICKETS_MAX)]
    entries: Vec<Entry>,
    /// Set by a source before it sends, and by a load. Without it the section is not sent; other sources have none.
    #[vmstate(skip)]
    present: bool,
}

/// A [`Ticket`] in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/ownership/ticket", version = 1, validate = Self::check)]
struct Entry {
    kind: Kind,
    /// Index of a disk in the order of all disks; 0 for the lease.
    index: u8,
    bytes: u64,
    has_record: bool,
    /// Zero without a record, like the generation.
    #[vmstate(buffer)]
    token: [u8; 16],
    generation: u64,
}

/// A [`Role`] in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[repr(u8)]
enum Kind {
    #[default]
    Disk = 0,
    Lease = 1,
}

impl Tickets {
    /// Makes the section of a source.
    pub fn new(tickets: &[Ticket]) -> Self {
        let entries: Vec<Entry> = tickets.iter().map(Entry::of).collect();
        Self { count: entries.len() as u32, entries, present: true }
    }

    /// Tickets that the source sent; `None` if it sent no section, as a QEMU.
    pub fn received(&self) -> Option<Vec<Ticket>> {
        self.present.then(|| self.entries.iter().map(Entry::ticket).collect())
    }

    fn is_present(&self) -> bool {
        self.present
    }

    fn note(&mut self, _version: u32) -> Result<(), String> {
        self.present = true;
        let mut seen = Vec::new();
        for role in self.entries.iter().map(Entry::role) {
            if seen.contains(&role) {
                return Err(format!("{role} comes twice"));
            }
            seen.push(role);
        }
        Ok(())
    }
}

impl Entry {
    fn of(ticket: &Ticket) -> Self {
        let (kind, index) = match ticket.role {
            Role::Disk(index) => (Kind::Disk, index),
            Role::Lease => (Kind::Lease, 0),
        };
        let Record { token, generation } = ticket.record.unwrap_or_default();
        Self { kind, index, bytes: ticket.bytes, has_record: ticket.record.is_some(), token, generation }
    }

    fn role(&self) -> Role {
        match self.kind {
            Kind::Disk => Role::Disk(self.index),
            Kind::Lease => Role::Lease,
        }
    }

    fn ticket(&self) -> Ticket {
        let record = Record { token: self.token, generation: self.generation };
        Ticket { role: self.role(), bytes: self.bytes, record: self.has_record.then_some(record) }
    }

    fn check(&self) -> Result<(), String> {
        match self.kind {
            Kind::Disk if self.index >= DISKS_MAX => {
                return Err(format!("{} is beyond the {DISKS_MAX} that there may be", self.role()));
            }
            Kind::Lease if (self.index, self.bytes) != (0, 0) => {
                return Err(format!("a lease has index {} and {} bytes, both are 0", self.index, self.bytes));
            }
            _ => {}
        }
        if !self.has_record && (self.token, self.generation) != ([0; 16], 0) {
            return Err("a token or generation without a record".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmstate::Section;
    use vmstate::codec::{Reader, Writer};

    use super::*;

    fn load(bytes: &[u8]) -> vmstate::Result<Tickets> {
        let mut tickets = Tickets::default();
        Section::load(&mut tickets, &mut Reader::strict(bytes), 1).map(|()| tickets)
    }

    /// The bytes are written by hand: docs/minivmm-devices.md documents the format.
    #[test]
    fn two_disks_and_a_lease() {
        let record = Record { token: *b"abcdefghijklmnop", generation: 5 };
        let tickets = [
            Ticket { role: Role::Disk(0), bytes: 0x1000, record: Some(record) },
            Ticket { role: Role::Disk(2), bytes: 0x200, record: None },
            Ticket { role: Role::Lease, bytes: 0, record: Some(Record { generation: 9, ..record }) },
        ];
        let bytes = [
            &b"\0\0\0\x03"[..],
            b"\0\0\0\0\0\0\0\0\x10\0\x01abcdefghijklmnop\0\0\0\0\0\0\0\x05",
            b"\0\x02\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x01\0\0\0\0\0\0\0\0\0\x01abcdefghijklmnop\0\0\0\0\0\0\0\x09",
        ]
        .concat();
        let mut out = Writer::new();
        Section::save(&mut Tickets::new(&tickets), &mut out).unwrap();
        assert_eq!(out.into_bytes(), bytes);
        assert_eq!(load(&bytes).unwrap().received(), Some(tickets.to_vec()));
        assert_eq!(load(b"\0\0\0\0").unwrap().received(), Some(Vec::new()));
        assert_eq!(Tickets::default().received(), None);
    }

    #[test]
    fn what_no_source_sends_is_refused() {
        let entry = |kind: u8, index: u8, bytes: u8, has_record: u8, token: u8, generation: u8| {
            let mut entry = vec![kind, index, 0, 0, 0, 0, 0, 0, 0, bytes, has_record];
            entry.extend([token; 16]);
            entry.extend([0, 0, 0, 0, 0, 0, 0, generation]);
            entry
        };
        let sent = |entries: &[Vec<u8>]| {
            let mut bytes = (entries.len() as u32).to_be_bytes().to_vec();
            bytes.extend(entries.concat());
            load(&bytes).map_err(|error| error.to_string())
        };
        assert!(sent(&[entry(0, 7, 1, 1, 1, 1), entry(1, 0, 0, 1, 1, 1)]).is_ok());
        for (entries, what) in [
            (vec![entry(2, 0, 0, 1, 1, 1)], "is no Kind"),
            (vec![entry(0, 8, 0, 1, 1, 1)], "disk 9 is beyond the 8 that there may be"),
            (vec![entry(1, 1, 0, 1, 1, 1)], "a lease has index 1"),
            (vec![entry(1, 0, 1, 1, 1, 1)], "a lease has index 0 and 1 bytes"),
            (vec![entry(0, 0, 0, 2, 1, 1)], "has_record"),
            (vec![entry(0, 0, 0, 0, 1, 0)], "without a record"),
            (vec![entry(0, 0, 0, 0, 0, 1)], "without a record"),
            (vec![entry(0, 3, 1, 1, 1, 1), entry(0, 3, 1, 1, 2, 1)], "disk 4 comes twice"),
            ((0..10).map(|index| entry(0, index, 0, 0, 0, 0)).collect(), "count"),
        ] {
            let error = sent(&entries).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
