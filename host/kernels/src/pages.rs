//! Large pages for large buffers: a fresh matrix of 64 MiB is 16,384 page faults in small ones, several times the work of
//! quantizing it.

use std::mem::MaybeUninit;

/// Smaller buffers are not worth a call; the allocator keeps them anyway.
const LEAST: usize = 8 << 20;

/// Asks the system to back memory that is about to be written with large pages. Only a hint: nothing depends on it.
pub(crate) fn prefer_large<T>(memory: &mut [MaybeUninit<T>]) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
