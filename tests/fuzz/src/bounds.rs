//! Memory as a bound: what one call allocates, counted on its own thread.

/// What `call` gives, if it never holds more than `memory` bytes at a time.
///
/// # Panics
/// If it does.
pub fn within<T>(memory: u64, call: impl FnOnce() -> T) -> T {
    let mut result = None;
    let used = allocation_counter::measure(|| result = Some(call())).bytes_max;
    assert!(used <= memory, "{used} bytes of memory were taken, at most {memory} are allowed");
    result.expect("the call came back")
}
