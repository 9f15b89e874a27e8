//! Pages of memory. Large ones for large buffers: a fresh matrix of 64 MiB is 16,384 page faults in small ones, several times
//! the work of quantizing it. And those that nobody uses any more, for the system.
//!
//! Large pages are not free of cost: where memory is in small parts, the system makes one while the writer waits (`madvise` in
//! `/sys/kernel/mm/transparent_hugepage/defrag`, the usual setting, means just that). So a [`Buffer`] takes pages that are there:
//! those of buffers that were dropped, then large ones that the system has free. Where there are none, a buffer that is soon
//! dropped (codes on their way into a packed matrix) takes small ones, and only one that stays (the packed matrix) waits.

mod arena;
mod buffer;
mod system;

pub use arena::Usage;
pub use buffer::{Buffer, Plain, Unwritten, give_back_kept, settle, usage};

/// Smaller buffers are not worth a call; the allocator keeps them anyway.
const LEAST: usize = 8 << 20;

/// Asks the system to back memory that is about to be written with large pages, where it is 8 MiB or more. Only a hint: nothing
/// depends on it.
pub fn prefer_large<T>(memory: &mut [T]) {
    #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
    {
        // std has no such call, and the crate needs no other part of libc.
        unsafe extern "C" {
            fn madvise(address: *mut u8, len: usize, advice: i32) -> i32;
        }
        const HUGEPAGE: i32 = 14;
        const PAGE: usize = 64 << 10; // the largest small page of any Linux
        let (start, len) = (memory.as_mut_ptr().cast::<u8>(), size_of_val(memory));
        let skip = start.align_offset(PAGE);
        if len >= LEAST && skip < len {
            let whole = (len - skip) / PAGE * PAGE;
            // SAFETY: whole pages inside of memory that is borrowed exclusively; the advice changes no content. Where it is
            // not taken, nothing is different, so the answer is not looked at.
            unsafe { madvise(start.add(skip), whole, HUGEPAGE) };
        }
    }
    let _ = (memory, LEAST);
}

/// Gives the system back what was freed and the allocator keeps: after a burst of requests glibc holds on to memory that lies
/// between what is still used. Takes milliseconds, during which other threads may wait for the allocator. Does nothing where
/// the allocator is not glibc's.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: it takes any number and touches only what nobody has; whether it found something is not of interest.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of this process, in bytes.
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
        1024 * line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).expect("a number")
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    fn what_was_freed_goes_back() {
        // Small pieces, of which every 64th stays: the others lie between what is used.
        let mut pieces: Vec<Option<Vec<u8>>> = (0..1 << 18).map(|_| Some(vec![1; 1024])).collect();
        let full = resident();
        for (i, piece) in pieces.iter_mut().enumerate() {
            if i % 64 != 0 {
                *piece = None;
            }
        }
        give_back();
        let left = resident();
        assert!(left + (32 << 20) < full, "{full} bytes were resident, and now {left}");
        assert!(pieces.iter().flatten().all(|piece| piece[0] == 1));
    }

    #[test]
    fn the_hint_changes_nothing() {
        for len in [0, 1, LEAST - 1, LEAST, LEAST + 12_345] {
            let mut memory: Vec<u8> = Vec::with_capacity(len);
            prefer_large(memory.spare_capacity_mut());
            memory.resize(len, 7);
            assert!(memory.iter().all(|b| *b == 7));
        }
    }
}
