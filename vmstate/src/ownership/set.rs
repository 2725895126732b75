//! The set of all resources of one guest, which are taken and released together.

use std::sync::{Arc, Mutex, MutexGuard};

use super::error::OwnershipError;
use super::proof::{Mismatch, Role, Ticket, compare};
use super::record::Record;
use super::resource::{Access, Resource};

use crate::sync::lock;

/// The result of [`Ownership::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// This side holds the guest's exclusive resources, and no guest has run on them since they were released. Records prove
    /// that; where there is none, only the locks do ([`Ownership::is_provable`]).
    Won,
    /// Another process holds at least one of them. Retry: a killed process's locks outlive its sockets by some milliseconds.
    Held,
    /// The resources are free, but a guest has run on them since: this copy of the guest is stale.
    Moved,
    /// The guest has no exclusive resource: nothing can be proved.
    Undecidable,
}

/// The resources of one guest. Threads share the set; each call locks the whole set.
#[derive(Debug)]
pub struct Ownership {
    exclusive: Mutex<Vec<Owned>>,
}

#[derive(Debug)]
struct Owned {
    role: Role,
    resource: Arc<Resource>,
    /// The record that [`Ownership::claim`] must find: the one that this side wrote last or received from the source. `None` if
    /// there is none; then the lock alone decides.
    known: Option<Record>,
    /// The other side has, or will have, a copy of this resource: neither its lock nor its record shows who runs the guest.
    left_out: bool,
}

impl Ownership {
    /// Creates a set of `resources`, each with its role. Shared ones are locked at once, and stay locked until they are closed:
    /// only exclusive ones are handed over.
    ///
    /// # Errors
    /// A shared resource cannot be locked.
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

    /// Takes all locks, whoever has run on the resources before. For a boot, and for a guest whose operator confirms that no
    /// other copy of it runs.
    ///
    /// # Errors
    /// A resource cannot be locked; then none is locked.
    pub fn take(&self) -> Result<(), OwnershipError> {
        lock_all(self.exclusive().iter())
    }

    /// Excludes exactly these resources from the decision who runs the guest, until the guest runs here
    /// ([`advance`](Self::advance)): a migration copies their contents to another file on the other side. They are not sent,
    /// proved, released or claimed, and their locks stay as they are. If no other resource is left, nothing can be proved, as
    /// without a disk.
    pub fn leave_out(&self, roles: &[Role]) {
        for owned in self.exclusive().iter_mut() {
            owned.left_out = roles.contains(&owned.role);
        }
    }

    /// Source, when a migration begins: writes a fresh token into each record, and returns the tickets for the destination. It is
    /// safe to abandon the migration afterwards.
    ///
    /// # Errors
    /// A lock is no longer held, or a record cannot be written.
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

    /// Destination, while the source holds the locks: checks that the resources here are those of the source's `tickets`, and
    /// that their locks exclude. From then on, [`claim`](Self::claim) compares with these tickets. A source without tickets, such
    /// as QEMU, proves nothing, and the locks alone decide.
    ///
    /// # Errors
    /// All differences.
    pub fn prove(&self, tickets: Option<&[Ticket]>) -> Result<(), Vec<Mismatch>> {
        self.compare(tickets, Some)
    }

    /// As for [`prove`](Self::prove), for a guest in a file, whose source has released the locks: only the records are compared.
    /// A copy of a resource that was made since then, with its record, passes.
    ///
    /// # Errors
    /// All differences.
    pub fn recognize(&self, tickets: Option<&[Ticket]>) -> Result<(), Vec<Mismatch>> {
        self.compare(tickets, |mismatch| match mismatch {
            Mismatch::NotHeld { .. } => None,
            Mismatch::MovedOn { role, path } => Some(Mismatch::MovedOnSinceFile { role, path }),
            Mismatch::Other { role, path } | Mismatch::NoRecord { role, path } => {
                Some(Mismatch::OtherThanFile { role, path })
            }
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

    /// Source, at the commit: releases all exclusive locks. All writes must have reached the disk before.
    ///
    /// # Errors
    /// A lock could not be released; all locks that can be taken again are held.
    pub fn release(&self) -> Result<(), OwnershipError> {
        let exclusive = self.exclusive();
        let released = deciding(&exclusive).try_for_each(|owned| owned.resource.unlock());
        if released.is_err() {
            hold_all(&exclusive)?;
        }
        released
    }

    /// Takes all exclusive locks, and compares the records with the expected ones. If the result is not [`Claim::Won`], this side
    /// holds no exclusive lock afterwards. May be called again, also while the locks are held.
    ///
    /// # Errors
    /// A lock or a record cannot be used, or a record that must exist is gone.
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

    /// Just before the guest runs, with the locks held: advances each record by one generation, so that any other copy of the
    /// guest becomes stale. After an error, it may be called again.
    ///
    /// # Errors
    /// A record cannot be written: the guest must not run. The locks stay held.
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

    /// True if records show who ran the guest last: each exclusive resource has one, or a lease stands for the guest as a whole.
    /// Valid after this side has written or proved the records.
    pub fn is_provable(&self) -> bool {
        let exclusive = self.exclusive();
        let mut leases = deciding(&exclusive).filter(|owned| owned.role == Role::Lease);
        let all = deciding(&exclusive).next().is_some() && deciding(&exclusive).all(|owned| owned.known.is_some());
        all || leases.any(|lease| lease.known.is_some())
    }

    /// True if a resource decides who may run the guest.
    pub fn has_exclusive(&self) -> bool {
        !self.roles().is_empty()
    }

    /// Roles of the resources that decide who may run the guest.
    pub fn roles(&self) -> Vec<Role> {
        deciding(&self.exclusive()).map(|owned| owned.role).collect()
    }

    /// A panic leaves the set usable: each record is written as a whole, and `known` is set after it.
    fn exclusive(&self) -> MutexGuard<'_, Vec<Owned>> {
        lock(&self.exclusive)
    }
}

impl Owned {
    /// Writes `record`, and expects it from then on if the resource has a place for one.
    fn keep(&mut self, record: Record) -> Result<(), OwnershipError> {
        self.known = self.resource.write_record(&record)?.then_some(record);
        Ok(())
    }
}

/// The resources that decide who runs the guest.
fn deciding(exclusive: &[Owned]) -> impl Iterator<Item = &Owned> {
    exclusive.iter().filter(|owned| !owned.left_out)
}

/// Takes all locks that can be taken: the guest runs here, so a failure of one lock does not release the others.
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

/// True if a record differs from the expected one.
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
