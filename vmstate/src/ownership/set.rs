//! All resources of one guest, taken and given up together.

use std::sync::{Arc, Mutex, MutexGuard};

use super::error::OwnershipError;
use super::proof::{Mismatch, Role, Ticket, compare};
use super::record::Record;
use super::resource::{Access, Resource};

use crate::sync::lock;

/// What [`Ownership::claim`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// This side holds the guest's exclusive resources, and no one has run a guest on them since they were let go: as far as
    /// their records tell, and where there is none, as far as the locks do ([`Ownership::is_provable`]).
    Won,
    /// Another process holds at least one of them. It may let go again: a killed process's locks outlive its sockets by
    /// some milliseconds.
    Held,
    /// The resources are free, but someone has run a guest on them since: this copy of the guest is stale.
    Moved,
    /// The guest has no exclusive resource: nothing can be proved.
    Undecidable,
}

/// The resources of one guest. Threads share it; each call has the whole set for itself.
#[derive(Debug)]
pub struct Ownership {
    exclusive: Mutex<Vec<Owned>>,
}

#[derive(Debug)]
struct Owned {
    role: Role,
    resource: Arc<Resource>,
    /// The record that [`Ownership::claim`] must find: the one that this side wrote last or was told. `None` if nothing is
    /// known, and then the lock alone decides.
    known: Option<Record>,
    /// What the other side has, or will have, is a copy: neither this lock nor this record tells who runs the guest.
    left_out: bool,
}

impl Ownership {
    /// The set of `resources`, each with its role. Shared ones are locked at once, and stay
    /// locked until they are closed: a hand-over moves exclusive ones only.
    ///
    /// # Errors
    /// A shared one cannot be locked.
    pub fn new(resources: impl IntoIterator<Item = (Role, Arc<Resource>)>) -> Result<Self, OwnershipError> {
        let mut exclusive = Vec::new();
        for (role, resource) in resources {
            match resource.access() {
                Access::Exclusive => exclusive.push(Owned { role, resource, known: None, left_out: false }),
                Access::Shared => resource.lock()?,
            }
        }
        Ok(Self { exclusive: Mutex::new(exclusive) })
    }

    /// Before a boot, or where a person vouches for it: takes all locks, whoever ran on the resources before.
    ///
    /// # Errors
    /// One cannot be locked; none is then.
    pub fn take(&self) -> Result<(), OwnershipError> {
        lock_all(self.exclusive().iter())
    }

    /// Leaves exactly these resources out of what decides who runs the guest, until the guest goes on here ([`advance`](Self::advance)):
    /// their content is copied to the other side of a migration, where it is another file. They are not told, proved, released or
    /// claimed, and their locks stay as they are. Without any other resource nothing can be proved, as without a disk.
    pub fn leave_out(&self, roles: &[Role]) {
        for owned in self.exclusive().iter_mut() {
            owned.left_out = roles.contains(&owned.role);
        }
    }

    /// Source, when a migration begins: writes a fresh token into each record, and returns what the destination is told.
    /// It is safe to abandon the migration afterwards.
    ///
    /// # Errors
    /// A lock is not held any more, or a record cannot be written.
    pub fn begin(&self) -> Result<Vec<Ticket>, OwnershipError> {
        let mut exclusive = self.exclusive();
        hold_all(&exclusive)?;
        for owned in exclusive.iter_mut() {
            let fresh = owned.resource.record()?.unwrap_or_default().with_fresh_token();
            owned.keep(fresh.map_err(OwnershipError::Token)?)?;
        }
        let ticket =
            |owned: &Owned| Ok(Ticket { role: owned.role, bytes: owned.resource.bytes()?, record: owned.known });
        deciding(&exclusive).map(ticket).collect()
    }

    /// Destination, while the source holds the locks: the resources here are those of the source's `tickets`, and their
    /// locks exclude. [`claim`](Self::claim) compares with these tickets from then on. A source that told nothing, as
    /// QEMU, has no `tickets`: then nothing is proved, and the locks alone decide.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn prove(&self, tickets: Option<&[Ticket]>) -> Result<(), Vec<Mismatch>> {
        self.compare(tickets, Some)
    }

    /// As [`prove`](Self::prove), of a guest in a file, whose source has let go of the locks: the records alone tell. A copy of a
    /// resource that was made since, with its record, passes.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn recognize(&self, tickets: Option<&[Ticket]>) -> Result<(), Vec<Mismatch>> {
        self.compare(tickets, |mismatch| match mismatch {
            Mismatch::NotHeld { .. } => None,
            Mismatch::MovedOn { role, path } => Some(Mismatch::MovedOnSinceFile { role, path }),
            mismatch => Some(mismatch),
        })
    }

    fn compare(
        &self,
        tickets: Option<&[Ticket]>,
        counts: fn(Mismatch) -> Option<Mismatch>,
    ) -> Result<(), Vec<Mismatch>> {
        let mut exclusive = self.exclusive();
        let here: Vec<_> = deciding(&exclusive).map(|owned| (owned.role, &*owned.resource)).collect();
        let wrong = tickets.map_or_else(Vec::new, |tickets| compare(&here, tickets));
        let wrong: Vec<_> = wrong.into_iter().filter_map(counts).collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for owned in exclusive.iter_mut() {
            let ticket = tickets.unwrap_or_default().iter().find(|ticket| ticket.role == owned.role);
            owned.known = ticket.and_then(|ticket| ticket.record);
        }
        Ok(())
    }

    /// Source, at the commit: gives up all exclusive locks. What was written is on the disk already.
    ///
    /// # Errors
    /// One could not be given up; all that can be taken again are held.
    pub fn release(&self) -> Result<(), OwnershipError> {
        let exclusive = self.exclusive();
        let released = deciding(&exclusive).try_for_each(|owned| owned.resource.unlock());
        if released.is_err() {
            hold_all(&exclusive)?;
        }
        released
    }

    /// Takes all exclusive locks, and compares the records with the known ones. Unless it is [`Claim::Won`], this side
    /// holds no exclusive lock afterwards. May be called again, also by who holds the locks.
    ///
    /// # Errors
    /// A lock or a record cannot be used, or a record that must be there is gone.
    pub fn claim(&self) -> Result<Claim, OwnershipError> {
        let exclusive = self.exclusive();
        let exclusive: Vec<_> = deciding(&exclusive).collect();
        if exclusive.is_empty() {
            return Ok(Claim::Undecidable);
        }
        match lock_all(exclusive.iter().copied()) {
            Ok(()) => {}
            Err(OwnershipError::InUse { .. }) => return Ok(Claim::Held),
            Err(error) => return Err(error),
        }
        let moved = any_moved(&exclusive);
        if !matches!(moved, Ok(false)) {
            exclusive.iter().try_for_each(|owned| owned.resource.unlock())?;
        }
        Ok(if moved? { Claim::Moved } else { Claim::Won })
    }

    /// Just before the first instruction, with the locks held: moves each record on by one generation, so that whoever
    /// else has a copy of the guest finds it stale. After an error it may be called again.
    ///
    /// # Errors
    /// A record cannot be written: the guest must not run. The locks are kept.
    pub fn advance(&self) -> Result<(), OwnershipError> {
        for owned in self.exclusive().iter_mut() {
            let record = match owned.resource.record()? {
                Some(record) => record,
                None => Record::default().with_fresh_token().map_err(OwnershipError::Token)?,
            };
            owned.keep(Record { generation: record.generation.wrapping_add(1), ..record })?;
            owned.left_out = false;
        }
        Ok(())
    }

    /// True if records tell who ran the guest last: each exclusive resource has one, or a lease speaks for the guest as a
    /// whole. Known once this side has written or proved them.
    pub fn is_provable(&self) -> bool {
        let exclusive = self.exclusive();
        let mut leases = deciding(&exclusive).filter(|owned| owned.role == Role::Lease);
        let all = deciding(&exclusive).next().is_some() && deciding(&exclusive).all(|owned| owned.known.is_some());
        all || leases.any(|lease| lease.known.is_some())
    }

    /// True if there is a resource that decides who may run the guest.
    pub fn has_exclusive(&self) -> bool {
        deciding(&self.exclusive()).next().is_some()
    }

    /// A panic leaves the set usable: each record is written whole, and `known` after it.
    fn exclusive(&self) -> MutexGuard<'_, Vec<Owned>> {
        lock(&self.exclusive)
    }
}

impl Owned {
    /// Writes `record`, and knows it if the resource has a place for one.
    fn keep(&mut self, record: Record) -> Result<(), OwnershipError> {
        self.known = self.resource.write_record(&record)?.then_some(record);
        Ok(())
    }
}

/// Those that tell who runs the guest.
fn deciding(exclusive: &[Owned]) -> impl Iterator<Item = &Owned> {
    exclusive.iter().filter(|owned| !owned.left_out)
}

/// Takes all locks that can be taken: the guest runs here, so those that are held are kept whatever becomes of one.
fn hold_all(exclusive: &[Owned]) -> Result<(), OwnershipError> {
    exclusive.iter().map(|owned| owned.resource.lock()).fold(Ok(()), Result::and)
}

/// Takes all locks, or none.
fn lock_all<'a>(exclusive: impl Iterator<Item = &'a Owned> + Clone) -> Result<(), OwnershipError> {
    let locked = exclusive.clone().try_for_each(|owned| owned.resource.lock());
    if locked.is_err() {
        exclusive.clone().try_for_each(|owned| owned.resource.unlock())?;
    }
    locked
}

/// True if a record is not the known one.
fn any_moved(exclusive: &[&Owned]) -> Result<bool, OwnershipError> {
    for owned in exclusive {
        let Some(known) = owned.known else { continue };
        let gone = || OwnershipError::RecordGone { path: owned.resource.path().into() };
        if owned.resource.record()?.ok_or_else(gone)? != known {
            return Ok(true);
        }
    }
    Ok(false)
}
