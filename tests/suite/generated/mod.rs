//! Inputs that nobody wrote: many, from fixed seeds. A few of each kind run in every test; the whole campaign runs with
//! `PATCHHOST_CAMPAIGN=1 cargo test --release --workspace --test suite -- generated --nocapture`.

mod components;
mod folders;
mod fuzz;
mod mutate;
mod shape;
mod tally;
mod texts;
