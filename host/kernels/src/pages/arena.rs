//! Who lies where in large pages: pieces of any length side by side in extents of many pages, and what is free between them.
//!
//! What is freed is kept for the next piece: its pages are there already, and a system whose memory is in small parts needs
//! milliseconds to make others. So a set of weights is written where the set before last lay. Kept is at most as much as is in
//! use; of what is more, whole large pages go back to the system.

use super::system::{LARGE, Mapping, free_large_pages};
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Address space of an extent: memory comes page by page, when it is written.
const EXTENT: usize = if cfg!(miri) { 2 * LARGE } else { 64 << 20 };

/// Pieces begin at multiples of this: two cache lines, as some machines fetch them in pairs.
const ALIGN: usize = 128;

/// So much may always be kept: it holds the codes of a large matrix, for the next one.
const KEPT: usize = 64 << 20;

/// How long the count of free large pages is believed.
const BELIEVED: Duration = Duration::from_millis(10);

/// Extents, sorted by their address.
pub(super) struct Arena {
    extents: Vec<Extent>,
    /// Bytes of pieces.
    used: usize,
    /// Large pages that memory may stand behind.
    touched: usize,
    /// Large pages that the system had free, less those taken since, and when that was.
    stock: Option<(usize, Instant)>,
}

/// Pages that lie side by side.
struct Extent {
    mapping: Mapping,
    /// Where what is free begins, and its length. No two of them touch each other.
    free: BTreeMap<usize, usize>,
    pages: Vec<Page>,
}

#[derive(Clone, Copy, Default)]
struct Page {
    /// Memory may stand behind it. Else it reads as zero.
    touched: bool,
    /// The system was told to use a large page.
    large: bool,
}

/// How long a piece stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// Worth a wait for large pages: it will be read many times.
    Long,
    /// It takes what is there.
    Short,
}

/// A piece that was taken.
pub(super) struct Taken {
    pub(super) at: NonNull<u8>,
    /// What was written before, from the beginning of the piece. The rest is zero.
    pub(super) stale: Vec<Range<usize>>,
}

/// How much memory is in use and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of buffers.
    pub used: usize,
    /// Bytes that no buffer has and that wait for the next one.
    pub kept: usize,
}

impl Arena {
    pub(super) const fn new() -> Self {
        Self { extents: Vec::new(), used: 0, touched: 0, stock: None }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { used: self.used, kept: (self.touched * LARGE).saturating_sub(self.used) }
    }

    /// A piece of `len` bytes, more than 0. None: the system has no address space left.
    pub(super) fn take(&mut self, len: usize, stay: Stay) -> Option<Taken> {
        let len = len.checked_next_multiple_of(ALIGN)?;
        let (index, start) = match self.best(len) {
            Some(found) => found,
            None => (self.extend(len)?, 0),
        };
        let extent = &mut self.extents[index];
        let room = extent.free.remove(&start)?;
        if room > len {
            extent.free.insert(start + len, room - len);
        }
        self.used += len;
        let pages = start / LARGE..(start + len).div_ceil(LARGE);
        let mut stale: Vec<Range<usize>> = Vec::new();
        for page in pages.clone().filter(|page| extent.pages[*page].touched) {
            let part = (page * LARGE).max(start) - start..((page + 1) * LARGE).min(start + len) - start;
            match stale.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => stale.push(part),
            }
        }
        // SAFETY: `start` lies inside of the mapping.
        let at = unsafe { extent.mapping.at().add(start) };
        self.touch(index, pages, stay);
        Some(Taken { at, stale })
    }

    /// The smallest free range that a piece fits into: matrices of one shape find each other's places.
    fn best(&self, len: usize) -> Option<(usize, usize)> {
        let free = self.extents.iter().enumerate().flat_map(|(i, e)| e.free.iter().map(move |(at, n)| (*n, i, *at)));
        free.filter(|(room, ..)| *room >= len).min().map(|(_, index, start)| (index, start))
    }

    fn extend(&mut self, len: usize) -> Option<usize> {
        let len = len.checked_next_multiple_of(LARGE)?.max(EXTENT);
        let mapping = Mapping::new(len)?;
        let index = self.extents.partition_point(|extent| extent.mapping.at() < mapping.at());
        let pages = vec![Page::default(); len / LARGE];
        self.extents.insert(index, Extent { mapping, free: BTreeMap::from([(0, len)]), pages });
        Some(index)
    }

    /// These pages are about to be written. Those that memory does not stand behind yet become large ones. For a short stay only
    /// as far as the system has any: asked for more, it makes them, and whoever writes waits for that.
    fn touch(&mut self, index: usize, pages: Range<usize>, stay: Stay) {
        let new: Vec<usize> = pages.filter(|page| !self.extents[index].pages[*page].touched).collect();
        if new.is_empty() {
            return;
        }
        self.touched += new.len();
        let large = match stay {
            Stay::Short => self.take_stock(new.len()),
            Stay::Long => new.len(),
        };
        let extent = &mut self.extents[index];
        for (i, page) in new.iter().enumerate() {
            extent.pages[*page].touched = true;
            if i >= large && extent.pages[*page].large {
                extent.advise(*page..*page + 1, false);
            }
        }
        for run in runs(&new[..large]) {
            extent.advise(run, true);
        }
    }

    /// How many of the large pages that are wanted the system has.
    fn take_stock(&mut self, wanted: usize) -> usize {
        let now = Instant::now();
        let known = self.stock.filter(|(left, at)| *left >= wanted && now.duration_since(*at) < BELIEVED);
        let left = match known {
            Some((left, _)) => left,
            // Others take some meanwhile.
            None => match free_large_pages() {
                Some(free) => free.saturating_sub(16 + free / 16),
                // Where nobody counts, they are asked for as ever.
                None => usize::MAX >> 1,
            },
        };
        let given = wanted.min(left);
        self.stock = Some((left - given, known.map_or(now, |(_, at)| at)));
        given
    }

    /// Takes a piece back.
    ///
    /// # Safety
    /// [`Arena::take`] gave it for this length, it was not given back since, and nobody uses it.
    pub(super) unsafe fn give(&mut self, at: NonNull<u8>, len: usize) {
        let len = len.next_multiple_of(ALIGN);
        let index = self.extents.partition_point(|extent| extent.mapping.at() <= at) - 1;
        let extent = &mut self.extents[index];
        let mut start = at.addr().get() - extent.mapping.at().addr().get();
        let mut end = start + len;
        if let Some((before, n)) = extent.free.range(..start).next_back().map(|(at, n)| (*at, *n))
            && before + n == start
        {
            extent.free.remove(&before);
            start = before;
        }
        if let Some(n) = extent.free.remove(&end) {
            end += n;
        }
        extent.free.insert(start, end - start);
        self.used -= len;
        self.shrink(self.used.max(KEPT));
    }

    /// Gives whole free pages back to the system until no more than so many bytes are kept.
    pub(super) fn shrink(&mut self, most: usize) {
        for index in (0..self.extents.len()).rev() {
            let kept = self.usage().kept;
            if kept <= most {
                return;
            }
            let extent = &mut self.extents[index];
            self.touched -= extent.release((kept - most).div_ceil(LARGE));
            // Where the system takes no parts back, it takes the whole.
            if extent.is_free() && (extent.touched() == 0 || self.usage().kept > most) {
                self.touched -= self.extents.remove(index).touched();
            }
        }
    }

    /// What was written onto small pages may become large ones in the background, if the system finds time.
    pub(super) fn settle(&mut self) {
        for extent in &mut self.extents {
            let plain: Vec<usize> =
                (0..extent.pages.len()).filter(|i| extent.pages[*i].touched && !extent.pages[*i].large).collect();
            for run in runs(&plain) {
                extent.advise(run, true);
            }
        }
    }
}

impl Extent {
    fn advise(&mut self, pages: Range<usize>, large: bool) {
        self.mapping.prefer(pages.start * LARGE..pages.end * LARGE, large);
        for page in &mut self.pages[pages] {
            page.large = large;
        }
    }

    /// Gives up to `most` free pages back. How many it gave.
    fn release(&mut self, most: usize) -> usize {
        let mut given = 0;
        let free: Vec<Range<usize>> =
            self.free.iter().map(|(at, n)| at.div_ceil(LARGE)..(at + n) / LARGE).filter(|r| !r.is_empty()).collect();
        for range in free.into_iter().rev() {
            let touched: Vec<usize> = range.filter(|page| self.pages[*page].touched).collect();
            let some = &touched[touched.len() - touched.len().min(most - given)..];
            for run in runs(some) {
                if self.mapping.forget(run.start * LARGE..run.end * LARGE) {
                    given += run.len();
                    self.pages[run].iter_mut().for_each(|page| page.touched = false);
                }
            }
        }
        given
    }

    /// Nobody lies in it.
    fn is_free(&self) -> bool {
        self.free.get(&0) == Some(&self.mapping.len())
    }

    fn touched(&self) -> usize {
        self.pages.iter().filter(|page| page.touched).count()
    }
}

/// Numbers in a row, as ranges.
fn runs(sorted: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in sorted {
        match runs.last_mut() {
            Some(last) if last.end == *at => last.end += 1,
            _ => runs.push(*at..*at + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of many lengths come and go; each holds what was written into it, and what was not written is zero.
    #[test]
    fn pieces_never_overlap() {
        let mut arena = Arena::new();
        let (mut state, mut pieces) = (1u64, Vec::<(NonNull<u8>, usize, u8)>::new());
        let mut random = |most: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % most
        };
        let (rounds, longest) = if cfg!(miri) { (60, 3 * LARGE / 2) } else { (1_000, 40 << 20) };
        for round in 0..rounds {
            let longest = if round % 7 == 0 { longest } else { 300_000 };
            if random(5) < 2 && !pieces.is_empty() {
                let (at, len, mark) = pieces.swap_remove(random(pieces.len()));
                for i in [0, len / 2, len - 1] {
                    // SAFETY: a byte of the piece.
                    assert_eq!(unsafe { *at.as_ptr().add(i) }, mark);
                }
                // SAFETY: taken with this length, and forgotten now.
                unsafe { arena.give(at, len) };
            } else {
                let (len, mark) = (1 + random(longest), 1 + random(255) as u8);
                let taken =
                    arena.take(len, if round % 2 == 0 { Stay::Long } else { Stay::Short }).expect("address space");
                assert!(taken.at.addr().get().is_multiple_of(ALIGN));
                for i in [0, len / 2, len - 1] {
                    let stale = taken.stale.iter().any(|range| range.contains(&i));
                    // SAFETY: a byte of the piece.
                    let byte = unsafe { &mut *taken.at.as_ptr().add(i) };
                    assert!(stale || *byte == 0, "what was written is called stale");
                    *byte = mark;
                }
                pieces.push((taken.at, len, mark));
            }
            let used: usize = pieces.iter().map(|(_, len, _)| len.next_multiple_of(ALIGN)).sum();
            assert_eq!(arena.used, used);
            let touched: usize = arena.extents.iter().map(Extent::touched).sum();
            assert_eq!(arena.touched, touched);
            assert!(arena.usage().kept <= used.max(KEPT) + arena.extents.len() * EXTENT, "{:?}", arena.usage());
        }
        for (at, len, _) in pieces {
            // SAFETY: taken with this length.
            unsafe { arena.give(at, len) };
        }
        assert!(arena.usage().kept <= KEPT, "{:?}", arena.usage());
        arena.shrink(0);
        assert!(arena.extents.is_empty() && arena.touched == 0, "everything went back");
    }

    #[test]
    fn the_next_piece_lies_where_the_last_one_was() {
        let mut arena = Arena::new();
        let big = if cfg!(miri) { LARGE } else { 50 << 20 };
        let first = arena.take(big, Stay::Short).expect("address space");
        assert!(first.stale.is_empty(), "new memory is zero");
        // SAFETY: taken with this length.
        unsafe { arena.give(first.at, big) };
        let next = arena.take(big, Stay::Short).expect("address space");
        assert_eq!(next.at, first.at);
        assert_eq!(next.stale, std::iter::once(0..big).collect::<Vec<_>>(), "and must be made zero");
        assert_eq!(arena.touched * LARGE, big);
        // SAFETY: taken with this length.
        unsafe { arena.give(next.at, big) };
    }

    #[test]
    fn an_impossible_length_is_an_answer() {
        assert!(Arena::new().take(usize::MAX - 5, Stay::Long).is_none());
        assert!(Arena::new().take(usize::MAX >> 1, Stay::Long).is_none());
    }
}
