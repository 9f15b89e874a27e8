//! Panics of libraries, caught. What others wrote can make a parser panic; that is a refusal then, and no backtrace.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// How many times [`caught`] is on this thread's stack.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs `work` on what others wrote. A panic on this thread is caught, its message is the error, and nothing is printed
/// about it; panics elsewhere are reported as before.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.with(Cell::get) == 0 {
                others(info);
            }
        }));
    });
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let done = catch_unwind(AssertUnwindSafe(work));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn a_panic_is_an_error_with_its_text() {
        assert_eq!(caught(|| 7), Ok(7));
        let none: [u8; 0] = [];
        let at = std::hint::black_box(3);
        let why = caught(|| none[at]).expect_err("it is out of bounds");
        assert!(why.contains("index out of bounds"), "{why}");
        let inner = caught(|| caught(|| panic!("inner")).map_err(|why: String| why + "!"));
        assert_eq!(inner, Ok(Err::<(), _>("inner!".to_owned())));
    }
}
