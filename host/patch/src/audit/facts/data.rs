//! Facts about one data segment.

use serde::Serialize;

/// One data segment of a core module: its size, where it lies, how it looks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DataFacts {
    /// Byte offset in the file.
    pub offset: usize,
    /// How many bytes it has.
    pub size: usize,
    /// Address in memory, where it is fixed.
    pub address: Option<u64>,
    /// Shannon entropy in bits per byte: of the whole, or of the densest 4 KiB.
    pub entropy: f64,
    /// Runs of eight and more printable characters.
    pub strings: usize,
    /// The first of them, cut.
    pub sample: Vec<String>,
    /// What is worth a look.
    pub marks: Vec<Mark>,
}

/// Something in a data segment that is worth a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// What was recognized.
    pub kind: MarkKind,
    /// The text, escaped and cut. Of a secret only its kind.
    pub text: String,
    /// Byte offset in the file.
    pub offset: usize,
}

/// What can be recognized in data; each has a rule of its own (PH602 to PH605).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// A URL or an IP address.
    Url,
    /// Something that looks like a key or a token.
    Secret,
    /// The first bytes of another kind of file.
    Binary,
    /// A path of the machine that it was built on.
    BuildPath,
}
