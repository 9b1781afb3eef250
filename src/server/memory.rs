//! Memory that nobody needs any more goes back to the system. The C library keeps what was freed below whatever is still in use, and
//! so for good what many sessions once had at the same time.

#![expect(unsafe_code, reason = "malloc_trim(3)")]

/// Gives back what the C library holds and nobody uses. Whoever allocates meanwhile may wait for it: tens of milliseconds where there are
/// hundreds of megabytes to give back, and microseconds where there is nothing.
#[cfg(target_env = "gnu")]
pub(super) fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches nothing that is allocated.
    unsafe { libc::malloc_trim(0) };
}

/// Nothing is known of other C libraries.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
