//! `guests/evil`, mirrored: whatever a component, a model file or a text does, the host lives, answers in time, stays
//! within its memory, says in three parts what it refused, and leaves the live model as it was.

mod bombs;
mod cases;
pub mod child;
mod clock;
mod files;
mod groups;
mod guests;
pub mod inside;
mod live;
mod names;
mod numbers;
mod places;
mod templates;
mod tokenizers;
pub mod wat;

#[test]
fn the_honest_bases_are_honest() {
    for world in wat::WORLDS {
        let patch = inside::load(world, wat::honest(world), patchhost::patch::Limits::default())
            .unwrap_or_else(|e| panic!("{world}: {e}"));
        for (call, answer) in inside::ask(&patch) {
            let rows = call == "panel-scales" && world == "quant-patch";
            assert!(answer.is_ok() != rows, "{world}: {call}: {answer:?}");
        }
        assert!(child::honest_peak(world) > 0);
    }
    inside::host_lives();
}
