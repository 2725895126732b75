//! A bound on memory: counts the bytes that one call allocates on its thread.

/// The result of `call`, which must never hold more than `memory` bytes at a time.
///
/// # Panics
/// When `call` holds more than `memory` bytes.
pub fn within<T>(memory: u64, call: impl FnOnce() -> T) -> T {
    let mut result = None;
    let used = allocation_counter::measure(|| result = Some(call())).bytes_max;
    assert!(used <= memory, "{used} bytes of memory were allocated, at most {memory} are allowed");
    result.expect("the call returned")
}
