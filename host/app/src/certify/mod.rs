//! Does another engine hold the weights that it was sent? A plan of right and faulty updates, tiny models to try them on, the
//! ways to bring them to an engine, and the certificate of what came out.

mod cases;
mod change;
mod dice;
mod draw;
mod error;
mod family;
mod folder;
mod plan;
mod weights;

pub use cases::{Case, Edit, Expect, Kind, Poison, class_name};
pub use error::KitError;
pub use family::{FAMILIES, Family};
pub use folder::{Made, MakeError, Wanted, make};
pub use plan::{Held, Plan, TensorEntry};
