//! Slices whose memory comes from the arena.

use super::arena::{Arena, Stay, Usage};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shorter buffers are the allocator's: large pages do nothing for them.
const LEAST: usize = 64 << 10;

/// Every buffer begins with a cache line.
const LINE: usize = 64;

/// What can lie in a [`Buffer`].
///
/// # Safety
/// Any bytes are a value of the type, zeros among them, and every byte of a value is one that was written (no padding).
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: plain numbers; any bits are a float.
unsafe impl Plain for f32 {}

/// A slice of fixed length whose memory begins with a cache line. From 64 KiB on it lies in large pages that it shares with
/// others, and its memory waits for the next buffer when it is dropped. Shorter ones are as cheap as a `Vec`.
pub struct Buffer<T: Plain> {
    at: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: it owns its values, as a `Vec` does, and `Plain` values may go to and be seen by other threads.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Buffer<T> {}

/// A buffer that nobody has written yet: what it holds is unknown.
pub struct Unwritten<T: Plain>(Buffer<T>);

static ARENA: Mutex<Arena> = Mutex::new(Arena::new());

fn arena() -> MutexGuard<'static, Arena> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory of all buffers that lie in large pages.
pub fn usage() -> Usage {
    arena().usage()
}

/// Gives the memory that waits for the next buffer back to the system. For a host that makes no more of them soon: the next
/// buffers are slower.
pub fn give_back_kept() {
    arena().shrink(0);
}

/// Says that the buffers of now stay for long (a set of weights was published): those that found no large page when they were
/// written may get one in the background.
pub fn settle() {
    arena().settle();
}

impl<T: Plain> Buffer<T> {
    /// Of zeros, for what stays long, as weights do: where the system has no large pages, it makes them now.
    ///
    /// # Panics
    /// If it is longer than the address space. As with a `Vec`, the process ends where the system has no memory.
    pub fn zeroed(len: usize) -> Self {
        let (new, stale) = Self::get(len, Stay::Long);
        for range in stale {
            // SAFETY: inside of the buffer's memory, which only `new` knows of.
            unsafe { new.at.cast::<u8>().as_ptr().add(range.start).write_bytes(0, range.len()) };
        }
        new
    }

    /// To be written as a whole, for a short time: nothing is spent on zeros, and nobody waits for large pages.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`].
    pub fn unwritten(len: usize) -> Unwritten<T> {
        Unwritten(Self::get(len, Stay::Short).0)
    }

    /// The layout of a buffer that is the allocator's. None: it is not.
    fn small(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes < LEAST)?;
        Layout::from_size_align(bytes, LINE).ok()
    }

    /// Memory, and the ranges of its bytes that are not zero.
    fn get(len: usize, stay: Stay) -> (Self, Vec<std::ops::Range<usize>>) {
        const { assert!(align_of::<T>() <= LINE && size_of::<T>() > 0, "values lie in cache lines") };
        let own = |at: NonNull<u8>| Self { at: at.cast(), len, owns: PhantomData };
        if len == 0 {
            return (Self { at: NonNull::<T>::dangling(), len, owns: PhantomData }, Vec::new());
        }
        if let Some(layout) = Self::small(len) {
            // SAFETY: the size is not 0.
            let at = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
            return (own(at), std::iter::once(0..layout.size()).collect());
        }
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer is shorter than the address space");
        let layout = Layout::from_size_align(bytes, LINE).expect("a buffer is shorter than the address space");
        let taken = arena().take(bytes, stay).unwrap_or_else(|| handle_alloc_error(layout));
        let stale = taken.stale.into_iter().map(|range| range.start..range.end.min(bytes)).collect();
        (own(taken.at), stale)
    }
}

impl<T: Plain> Unwritten<T> {
    /// Where to write.
    pub fn room(&mut self) -> &mut [MaybeUninit<T>] {
        // SAFETY: its own memory, of this length; nothing is said about what it holds.
        unsafe { std::slice::from_raw_parts_mut(self.0.at.cast().as_ptr(), self.0.len) }
    }

    /// The buffer.
    ///
    /// # Safety
    /// Every value was written.
    pub unsafe fn written(self) -> Buffer<T> {
        self.0
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        match Self::small(self.len) {
            _ if self.len == 0 => {}
            // SAFETY: allocated with this layout, and nobody has it any more.
            Some(layout) => unsafe { dealloc(self.at.cast().as_ptr(), layout) },
            // SAFETY: taken with this length, and nobody has it any more.
            None => unsafe { arena().give(self.at.cast(), self.len * size_of::<T>()) },
        }
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: its own memory, of this length; every value was written, or is zeros.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as `deref`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> Default for Buffer<T> {
    fn default() -> Self {
        Self::get(0, Stay::Short).0
    }
}

impl<T: Plain> From<&[T]> for Buffer<T> {
    fn from(values: &[T]) -> Self {
        let mut new = Unwritten(Self::get(values.len(), Stay::Long).0);
        new.room().write_copy_of_slice(values);
        // SAFETY: all of it was written just now.
        unsafe { new.written() }
    }
}

impl<T: Plain> From<Vec<T>> for Buffer<T> {
    /// A copy: the memory of a `Vec` is the allocator's.
    fn from(values: Vec<T>) -> Self {
        Self::from(&values[..])
    }
}

impl<T: Plain> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::from(values.into_iter().collect::<Vec<T>>())
    }
}

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl<T: Plain + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, PartialEq, Debug)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);
    // SAFETY: bytes, without padding.
    unsafe impl Plain for Line {}

    #[test]
    fn a_buffer_is_a_slice_of_zeros() {
        for len in [0, 1, 63, 1023, 1024, 1025, 40_000] {
            for round in 0..3 {
                let mut lines = Buffer::<Line>::zeroed(len);
                assert!(lines.len() == len && lines.as_ptr().addr().is_multiple_of(LINE));
                assert!(lines.iter().all(|line| line.0.iter().all(|byte| *byte == 0)), "{len} lines, round {round}");
                lines.fill(Line([round + 1; 64]));
                let copy = lines.clone();
                assert!(copy == lines && (len == 0 || copy.as_ptr() != lines.as_ptr()));
            }
        }
        assert_eq!(Buffer::<f32>::default().len(), 0);
        assert_eq!(format!("{:?}", Buffer::from(&[1u16, 2][..])), "[1, 2]");
    }

    #[test]
    fn buffers_go_to_other_threads() {
        let threads = if cfg!(miri) { 2 } else { 8 };
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    for round in 1..if cfg!(miri) { 3 } else { 100 } {
                        let mut buffer = Buffer::<u32>::zeroed(LEAST / 4 + thread * 5_000);
                        assert!(buffer.iter().all(|x| *x == 0));
                        buffer.fill(round);
                        std::thread::spawn(move || drop(buffer)).join().expect("no panic");
                    }
                });
            }
        });
    }

    #[test]
    fn what_is_used_is_counted() {
        let before = usage();
        let buffer = Buffer::<u8>::zeroed(LEAST);
        // Other tests have buffers too, so only the least is known.
        assert!(usage().used >= LEAST, "{before:?}, {:?}", usage());
        settle();
        drop(buffer);
        give_back_kept();
    }
}
