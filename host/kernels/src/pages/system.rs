//! What the system is asked for: address space in large pages, and which part of it memory stands behind.

use std::ops::Range;
use std::ptr::NonNull;

/// Bytes of a large page (x86-64; Arm with small pages of 4 KiB).
pub(super) const LARGE: usize = 2 << 20;

/// A mapping of whole large pages that begins with one. New memory in it is zero, and takes no memory until it is written.
pub(super) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, and gives out no references.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(super) fn at(&self) -> NonNull<u8> {
        self.at
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Checks that the mapping has these bytes.
    fn part(&self, part: &Range<usize>) -> (*mut u8, usize) {
        assert!(part.start <= part.end && part.end <= self.len, "a part of the mapping");
        // SAFETY: inside of the mapping, as checked.
        (unsafe { self.at.as_ptr().add(part.start) }, part.end - part.start)
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod given {
    use super::{LARGE, Mapping};
    use std::ops::Range;
    use std::ptr::NonNull;

    // std has no such calls, and the crate needs no other part of libc.
    unsafe extern "C" {
        fn mmap(address: *mut u8, len: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
        fn munmap(address: *mut u8, len: usize) -> i32;
        fn madvise(address: *mut u8, len: usize, advice: i32) -> i32;
    }
    const READ_AND_WRITE: i32 = 3;
    #[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
    const PRIVATE_ANONYMOUS: i32 = 0x22;
    #[cfg(any(target_arch = "mips", target_arch = "mips64"))]
    const PRIVATE_ANONYMOUS: i32 = 0x802;
    const DONTNEED: i32 = 4;
    const HUGEPAGE: i32 = 14;
    const NOHUGEPAGE: i32 = 15;

    impl Mapping {
        /// `len`: a multiple of [`LARGE`]. None: the system has no address space left.
        pub(crate) fn new(len: usize) -> Option<Self> {
            debug_assert!(len > 0 && len.is_multiple_of(LARGE), "whole large pages");
            let whole = len.checked_add(LARGE)?;
            // SAFETY: a new mapping, at an address that the system chooses.
            let start = unsafe { mmap(std::ptr::null_mut(), whole, READ_AND_WRITE, PRIVATE_ANONYMOUS, -1, 0) };
            if start.is_null() || start.addr() == usize::MAX {
                return None;
            }
            let skip = start.addr().next_multiple_of(LARGE) - start.addr();
            // SAFETY: what lies before and behind the whole large pages inside of the new mapping; nobody knows of it.
            unsafe {
                if skip > 0 {
                    munmap(start, skip);
                }
                munmap(start.add(skip + len), LARGE - skip);
            }
            // SAFETY: inside of the new mapping.
            NonNull::new(unsafe { start.add(skip) }).map(|at| Self { at, len })
        }

        /// Gives the memory behind a part back. True: the part reads as zero now. Nobody uses the part.
        pub(crate) fn forget(&self, part: Range<usize>) -> bool {
            let (at, len) = self.part(&part);
            // SAFETY: whole pages of this mapping that nobody uses (the arena's free ranges).
            unsafe { madvise(at, len, DONTNEED) == 0 }
        }

        /// Whether large pages stand behind a part from now on. A hint: where it is not taken, nothing is different.
        pub(crate) fn prefer(&self, part: Range<usize>, large: bool) {
            let (at, len) = self.part(&part);
            // SAFETY: whole pages of this mapping; the advice changes no content.
            unsafe { madvise(at, len, if large { HUGEPAGE } else { NOHUGEPAGE }) };
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: this mapping, which nobody uses any more.
            unsafe { munmap(self.at.as_ptr(), self.len) };
        }
    }

    /// Large pages that the system can give without making them first, out of `/proc/buddyinfo`. None: it does not say.
    pub(crate) fn free_large_pages() -> Option<usize> {
        super::count(&std::fs::read_to_string("/proc/buddyinfo").ok()?)
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
mod given {
    use super::{LARGE, Mapping};
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ops::Range;
    use std::ptr::NonNull;

    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len, LARGE).ok()
    }

    impl Mapping {
        pub(crate) fn new(len: usize) -> Option<Self> {
            debug_assert!(len > 0 && len.is_multiple_of(LARGE), "whole large pages");
            // SAFETY: the size is not 0.
            NonNull::new(unsafe { alloc_zeroed(layout(len)?) }).map(|at| Self { at, len })
        }

        pub(crate) fn forget(&self, part: Range<usize>) -> bool {
            let _ = self.part(&part);
            false
        }

        pub(crate) fn prefer(&self, part: Range<usize>, _large: bool) {
            let _ = self.part(&part);
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            if let Some(layout) = layout(self.len) {
                // SAFETY: allocated in `new` with this layout, and nobody uses it any more.
                unsafe { dealloc(self.at.as_ptr(), layout) };
            }
        }
    }

    pub(crate) fn free_large_pages() -> Option<usize> {
        None
    }
}

pub(super) use given::free_large_pages;

/// Out of the text of `/proc/buddyinfo`: a line for each zone, `Node 0, zone Normal`, and how many free blocks of 1, 2, 4, ...
/// small pages it has.
#[cfg_attr(not(all(target_os = "linux", target_pointer_width = "64", not(miri))), allow(dead_code))]
fn count(text: &str) -> Option<usize> {
    /// Small pages of a large one: 2^9 of 4 KiB.
    const ORDER: usize = 9;
    let mut sum = None;
    for line in text.lines() {
        let mut words = line.split_whitespace().skip_while(|word| *word != "zone");
        let (Some(_), Some(zone)) = (words.next(), words.next()) else { continue };
        // Memory for old devices is not given to programs as long as there is another.
        if zone == "DMA" {
            continue;
        }
        let blocks = words.skip(ORDER).enumerate();
        let pages: usize = blocks.map(|(more, n)| n.parse::<usize>().unwrap_or(0) << more.min(16)).sum();
        sum = Some(sum.unwrap_or(0) + pages);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_are_counted() {
        let text = "\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n\
Node 0, zone    DMA32    455    354    166    111     78     29     16      9      8      4    743 \n\
Node 0, zone   Normal    436   1450   1120  10928   4914   1487    877   2868   1748    783   1207 \n";
        assert_eq!(count(text), Some(4 + 2 * 743 + 783 + 2 * 1207));
        for odd in ["", "what", "Node 0", "zone"] {
            assert_eq!(count(odd), None, "{odd}");
        }
        assert_eq!(count("Node 0, zone Normal 1 2 3"), Some(0));
        assert_eq!(count("Node 0, zone Normal 1 2 3 4 5 6 7 8 9 x"), Some(0));
    }

    #[test]
    fn a_mapping_is_zero_again_after_it_was_forgotten() {
        let mapping = Mapping::new(2 * LARGE).expect("address space");
        assert!(mapping.at().addr().get().is_multiple_of(LARGE));
        mapping.prefer(0..mapping.len(), true);
        // SAFETY: inside of the mapping, and nobody else knows of it.
        let byte = unsafe { &mut *mapping.at().as_ptr().add(LARGE + 5) };
        assert_eq!(*byte, 0);
        *byte = 7;
        let zero = mapping.forget(LARGE..2 * LARGE);
        // SAFETY: as above.
        assert_eq!(unsafe { *mapping.at().as_ptr().add(LARGE + 5) }, if zero { 0 } else { 7 });
    }
}
