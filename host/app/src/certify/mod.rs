//! Does another engine hold the weights that it was sent? A plan of right and faulty updates, tiny models to try them on, the
//! ways to bring them to an engine, and the certificate of what came out.

mod cases;
pub mod certificate;
mod change;
mod dice;
mod draw;
mod engine;
mod error;
mod family;
mod folder;
mod http;
mod judge;
mod launch;
mod model;
mod plan;
mod stream;
mod trial;
mod weights;

pub use cases::{Case, Edit, Expect, Kind, Poison, class_name, name_of};
pub use change::{Changed, changes};
pub use draw::{Known, draw};
pub use engine::{Answered, Api, Engine, Found, Identity, Outcome, connect};
pub use error::{KitError, KitErrorKind};
pub use family::{FAMILIES, Family};
pub use folder::{MAX_TOKENS, Made, MakeError, Wanted, copy_beside, kit, make, write_tensors};
pub use judge::{Answers, Distance, Fresh, Reference, computed};
pub use launch::{Launched, Launcher};
pub use model::{ModelError, OwnModel};
pub use plan::{Held, Plan, TensorEntry, prompts};
pub use stream::Stream;
pub use trial::{Judged, Relaunch, Subject, Trial, ask_twice};
pub use weights::Tensor;
