//! Descriptors that a client passes with its bytes (SCM_RIGHTS, unix(7)), and the names that it gives them with `getfd`. Each
//! client has descriptors of its own, as with QEMU (monitor/fds.c); they are closed with its connection.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::config::{Address, Descriptor};
use crate::control::commands::{Arguments, Failure};
use crate::control::kind::{Kind, needed};
use crate::control::table::Command;
use crate::sync::lock;
use crate::vm::Handle;

/// Most descriptors in one message; the kernel closes any further ones.
const MESSAGE_MAX: usize = 8;

/// Most descriptors of a client without a name, and most with a name.
const KEPT_MAX: usize = 32;

/// Descriptors that one client has passed. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Descriptors(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// Descriptors without a name, in the order in which they came.
    unnamed: VecDeque<OwnedFd>,
    named: BTreeMap<String, Descriptor>,
}

/// Context of a command: the machine, and the descriptors that the client has passed.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) handle: Handle,
    pub(super) descriptors: Descriptors,
}

impl Deref for Caller {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new(
            "getfd",
            "gives the name `fdname` to a descriptor that came with the command (SCM_RIGHTS): for `migrate`, `migrate-incoming` and \
             `drive-backup`, which take it as `fd:NAME`. It is closed at the end of the connection at the latest",
            |caller, arguments| caller.descriptors.name(&arguments),
        )
        .takes([needed("fdname", Kind::Text)]),
        Command::new("closefd", "closes the descriptor that `getfd` named `fdname`", |caller, arguments| {
            caller.descriptors.close(&arguments)
        })
        .takes([needed("fdname", Kind::Text)]),
    ]
}

impl Descriptors {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.0)
    }

    fn name(&self, arguments: &Arguments) -> Result<Value, Failure> {
        let name = arguments.text("fdname").unwrap_or_default();
        let mut kept = self.kept();
        let passed = kept.unnamed.pop_front();
        let passed = passed.ok_or_else(|| Failure::generic("No file descriptor supplied via SCM_RIGHTS"))?;
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(Failure::generic("Parameter 'fdname' expects a name not starting with a digit"));
        }
        if kept.named.len() == KEPT_MAX && !kept.named.contains_key(name) {
            return Err(Failure::generic(format!("a client may have {KEPT_MAX} named descriptors; closefd one first")));
        }
        kept.named.insert(name.into(), passed.into());
        Ok(json!({}))
    }

    fn close(&self, arguments: &Arguments) -> Result<Value, Failure> {
        let name = arguments.text("fdname").unwrap_or_default();
        match self.kept().named.remove(name) {
            Some(_) => Ok(json!({})),
            None => Err(Failure::generic(format!("File descriptor named '{name}' not found"))),
        }
    }

    /// Moves the descriptor that `address` names, if it names one, into `address`; the name is free then.
    ///
    /// # Errors
    /// No descriptor has this name.
    pub(super) fn put_into(&self, address: &mut Address) -> Result<(), Failure> {
        let Address::Descriptor { name, passed } = address else { return Ok(()) };
        let unknown = || Failure::generic(format!("File descriptor named '{name}' has not been found"));
        *passed = Some(self.kept().named.remove(name.as_str()).ok_or_else(unknown)?);
        Ok(())
    }

    fn take_in(&self, came: impl Iterator<Item = OwnedFd>) {
        let mut kept = self.kept();
        for one in came {
            if kept.unnamed.len() == KEPT_MAX {
                kept.unnamed.pop_front();
            }
            kept.unnamed.push_back(one);
        }
    }
}

/// Reads a client's bytes, and collects the descriptors that it passes.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    stream: &'a UnixStream,
    descriptors: Descriptors,
}

impl<'a> Incoming<'a> {
    /// Reads from `stream`.
    pub(super) fn new(stream: &'a UnixStream) -> Self {
        Self { stream, descriptors: Descriptors::default() }
    }

    /// Returns the descriptors that the client passes.
    pub(super) fn descriptors(&self) -> Descriptors {
        self.descriptors.clone()
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
        let rights = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        self.descriptors.take_in(rights.flatten());
        Ok(received.bytes)
    }
}
