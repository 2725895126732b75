//! Tasks that write or read pages at their places in a file, on the thread of the snapshot or on several others.
//!
//! No two tasks that are under way have the same page: a round has each page once, and the next round begins after all tasks of
//! the last one have ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::codec::PageRun;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::batch::Batch;
use crate::ram::multifd::packet::{PacketPages, runs};
use crate::ram::{GuestRam, PAGE_SIZE};
use crate::sync::{lock, wait};

/// The most tasks that wait or are under way, each of at most 512 KiB.
const TASKS_MAX: usize = 32;

/// What a task does with its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Writes the pages to the file, except zero pages.
    Write,
    /// Reads the pages from the file.
    Read,
}

/// Pages of one block that one thread writes or reads.
#[derive(Debug)]
pub(super) struct Task {
    action: Action,
    batch: Batch,
    file: Arc<File>,
    /// Offset of the block's first page in the file.
    pages_at: u64,
}

impl Task {
    /// Writes or reads the pages. Returns those that a write has found to be normal and zero.
    fn carry_out(&self, ram: &dyn GuestRam) -> Result<PacketPages> {
        let mut sorted = PacketPages::default();
        match self.action {
            Action::Write => {
                self.batch.sort(ram, &mut sorted)?;
                let transfer = |run: PageRun| ram.send_at(&self.file, self.pages_at + run.offset, run);
                for run in runs(sorted.block, &sorted.normal) {
                    transferred(run, io::ErrorKind::WriteZero, transfer)?;
                }
            }
            Action::Read => {
                let transfer = |run: PageRun| ram.receive_at(&self.file, self.pages_at + run.offset, run);
                for pages in &self.batch.touched {
                    let (offset, len) = (pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE);
                    let run = PageRun { block: self.batch.block, offset, len };
                    transferred(run, io::ErrorKind::UnexpectedEof, transfer)?;
                }
            }
        }
        Ok(sorted)
    }
}

/// Repeats `transfer`, which returns how many bytes it has transferred, until all of `run` is; `nothing` is the error for none.
fn transferred(run: PageRun, nothing: io::ErrorKind, transfer: impl Fn(PageRun) -> io::Result<usize>) -> Result<()> {
    let mut runs = [run];
    let mut rest = runs.as_mut_slice();
    while let Some(&run) = rest.first() {
        match transfer(run) {
            Ok(0) => return Err(io::Error::from(nothing).into()),
            Ok(count) => PageRun::advance_slices(&mut rest, count as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An error of guest memory is the inner error.
            Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
        }
    }
    Ok(())
}

/// The file of a guest's pages, and the threads that write or read it, if there are others than the snapshot's.
pub(super) struct PagesFile {
    file: Arc<File>,
    /// The descriptor by which pages are transferred.
    pages: Arc<File>,
    threads: Option<FileThreads>,
}

impl PagesFile {
    pub(super) fn new(file: File, threads: Option<FileThreads>) -> Self {
        let pages = threads.as_ref().and_then(FileThreads::take_file);
        let file = Arc::new(file);
        Self { pages: pages.map_or_else(|| Arc::clone(&file), Arc::new), file, threads }
    }

    /// Writes or reads pages of one or more blocks, each with the offset of its block's first page. With other threads, returns
    /// before the last pages are transferred. Returns the pages of writes that have ended.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
    pub(super) fn transfer(
        &self,
        ram: &dyn GuestRam,
        action: Action,
        batches: impl Iterator<Item = (Batch, u64)>,
    ) -> Result<Vec<PacketPages>> {
        let tasks = batches.map(|(batch, pages_at)| Task { action, batch, file: Arc::clone(&self.pages), pages_at });
        match &self.threads {
            None => tasks.map(|task| task.carry_out(ram)).collect(),
            Some(threads) => threads.push(tasks),
        }
    }

    /// Waits until all pages are transferred. Returns the pages of writes that have ended since the last call.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
    pub(super) fn await_all(&self) -> Result<Vec<PacketPages>> {
        self.threads.as_ref().map_or(Ok(Vec::new()), |threads| threads.await_undone(0))
    }
}

impl std::ops::Deref for PagesFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// Threads that write or read the pages of one guest at their places in a file, beside the thread of the snapshot. Clones share
/// the state. The library starts no thread: run each [`worker`](Self::worker) on a thread.
#[derive(Clone, Debug, Default)]
pub struct FileThreads(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when there is a task, and at the end.
    work: Condvar,
    /// Signalled when a task has ended, and when a thread has failed.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Task>,
    /// Tasks that wait or are under way.
    undone: usize,
    /// The pages of writes that have ended.
    done: Vec<PacketPages>,
    has_workers: bool,
    /// The descriptor by which pages are transferred, if it is not the snapshot's own.
    file: Option<File>,
    is_over: bool,
    /// The error of the first thread that failed.
    failure: Option<Error>,
}

impl FileThreads {
    /// Creates the state for one snapshot, before its first worker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates the state for one snapshot whose pages are transferred by `file` and not by the descriptor of the channel. `file` is
    /// the same file, opened once more, for example with O_DIRECT: transfers are of whole pages at multiples of the page size.
    pub fn on(file: File) -> Self {
        let threads = Self::new();
        threads.lock().file = Some(file);
        threads
    }

    fn take_file(&self) -> Option<File> {
        self.lock().file.take()
    }

    /// Creates the work for one thread.
    pub fn worker(&self) -> FileWorker {
        self.lock().has_workers = true;
        FileWorker(self.clone())
    }

    /// Ends the threads. A snapshot that still needs them fails.
    pub fn close(&self) {
        self.lock().is_over = true;
        self.0.work.notify_all();
        self.0.progress.notify_all();
    }

    /// Queues tasks as the threads end others. Returns the pages of writes that have ended.
    fn push(&self, tasks: impl Iterator<Item = Task>) -> Result<Vec<PacketPages>> {
        let mut done = Vec::new();
        for task in tasks {
            done.append(&mut self.await_undone(TASKS_MAX - 1)?);
            let mut state = self.lock();
            if !state.has_workers {
                return Err(Error::new(ErrorKind::Misuse, "no thread runs a worker of the file's threads"));
            }
            state.queue.push_back(task);
            state.undone += 1;
            drop(state);
            self.0.work.notify_one();
        }
        Ok(done)
    }

    /// Waits until at most `most` tasks wait or are under way. Returns the pages of writes that have ended.
    fn await_undone(&self, most: usize) -> Result<Vec<PacketPages>> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                let message = "a thread that writes or reads the pages of the file has ended before the last page";
                return Err(state.failure.take().unwrap_or_else(|| Error::new(ErrorKind::Misuse, message)));
            }
            if state.undone <= most {
                return Ok(std::mem::take(&mut state.done));
            }
            state = wait(&self.0.progress, state);
        }
    }

    /// Returns the next task, or `None` at the end.
    fn task(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            if let Some(task) = state.queue.pop_front() {
                return Some(task);
            }
            state = wait(&self.0.work, state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

/// The work of one thread of [`FileThreads`]. Dropping it before the end makes the snapshot fail.
#[derive(Debug)]
pub struct FileWorker(FileThreads);

impl FileWorker {
    /// Writes or reads pages of `ram` until the end of the snapshot; a failure ends the snapshot.
    pub fn run(self, ram: &dyn GuestRam) {
        let Self(threads) = &self;
        while let Some(task) = threads.task() {
            let ended = task.carry_out(ram);
            let mut state = threads.lock();
            match ended {
                Ok(sorted) => {
                    state.undone -= 1;
                    state.done.push(sorted);
                }
                // The other threads end, too. Only the first failure is the cause.
                Err(error) if !state.is_over => {
                    state.failure = Some(error);
                    return;
                }
                Err(_) => return,
            }
            drop(state);
            threads.0.progress.notify_all();
        }
    }
}

impl Drop for FileWorker {
    fn drop(&mut self) {
        // At the end, the others end anyway.
        self.0.close();
    }
}
