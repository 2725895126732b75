//! Configures the heap of a process whose threads may not open files.

/// Uses one malloc arena for all threads. The GNU C library opens files under `/sys` and `/proc` when a thread makes or shrinks
/// an arena of its own (`arena_get2`, `check_may_shrink_heap`, malloc/arena.c). Each thread still caches memory that it freed
/// (`tcache`).
#[cfg(target_env = "gnu")]
pub(super) fn use_one_arena() {
    // SAFETY: the call only sets a number in the allocator, under its lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Other C libraries have no arenas.
#[cfg(not(target_env = "gnu"))]
pub(super) fn use_one_arena() {}
