//! Coverage-guided fuzzing of what reads bytes from outside. See README.md here.

pub mod targets;
