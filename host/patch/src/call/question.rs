//! One call of a patch: what was asked, and how it ended. These values are the frames that a child process gets and gives,
//! and the events of a recording: a variant is only ever added at the end, because its place is what is written.

use crate::abi::Snapshot;
use crate::base::Function;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    self, ActivationRule, Arrival, Consumer, Decision, Elem, HookError, LayoutPass, LoraPlan, ModelInfo, Placement,
    RowPanel, TensorInfo, Verdict,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// How a call ended: an answer, a refusal, or a fault.
pub type Outcome = Result<Answer, HookError>;

/// What was asked, with everything that it was asked about.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the arguments of the functions in `wit/patch/0.1.0`
pub enum Question {
    Resolve {
        model: ModelInfo,
        registry: Vec<TensorInfo>,
        checkpoint: Vec<TensorInfo>,
    },
    Decide {
        model: ModelInfo,
        reader: Consumer,
        tensors: Vec<TensorInfo>,
    },
    Activation(ModelInfo),
    Scales {
        blocks: Blocks,
        amax: Vec<f32>,
    },
    ScalesWithMoments {
        blocks: Blocks,
        amax: Vec<f32>,
        sum_squares: Vec<f32>,
    },
    PanelScales {
        blocks: Blocks,
        rows: Rows,
        amax: Vec<f32>,
    },
    ActivationScales(Vec<f32>),
    Passes {
        model: ModelInfo,
        reader: Consumer,
        tensors: Vec<TensorInfo>,
    },
    Admit {
        model: ModelInfo,
        peft_config: String,
        registry: Vec<TensorInfo>,
        adapter: Vec<TensorInfo>,
    },
    Masked {
        model: ModelInfo,
        rows: u32,
        vocabulary: u32,
    },
    /// A refit begins.
    Begin {
        version: String,
        expected: Option<Vec<String>>,
    },
    /// The refit of this number goes on.
    Tensors {
        watch: u64,
        batch: Vec<Arrival>,
    },
    Finish {
        watch: u64,
        total: u32,
    },
    /// The refit of this number is over, whichever way.
    Forget {
        watch: u64,
    },
    ExportState,
    ImportState(Snapshot),
}

/// What a patch answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // one for each type of answer in `wit/patch/0.1.0`
pub enum Answer {
    Placements(Vec<Placement>),
    Decisions(Vec<Decision>),
    Activation(Option<ActivationRule>),
    Numbers(Vec<f32>),
    Passes(Vec<Vec<LayoutPass>>),
    Plan(LoraPlan),
    Ranges(Vec<(u32, u32)>),
    /// The verdict, and the number of the refit in this recording.
    Begun(Verdict, u64),
    Verdict(Verdict),
    State(Option<Snapshot>),
    Done,
}

/// A run of blocks: [`hooks::Blocks`] that own their name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Name of the checkpoint tensor.
    pub tensor: String,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
    /// Index of the first block, row-major over the block grid.
    pub first_block: usize,
}

impl Blocks {
    pub(crate) fn of(b: &hooks::Blocks<'_>) -> Self {
        let hooks::Blocks { tensor, rows, cols, block_rows, block_cols, first_block } = *b;
        Self { tensor: tensor.to_owned(), rows, cols, block_rows, block_cols, first_block }
    }

    pub(crate) fn lend(&self) -> hooks::Blocks<'_> {
        let Self { rows, cols, block_rows, block_cols, first_block, .. } = *self;
        hooks::Blocks { tensor: &self.tensor, rows, cols, block_rows, block_cols, first_block }
    }
}

/// The rows of a panel, so that a replay needs no model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rows {
    /// Element type.
    pub elem: Elem,
    /// Columns.
    pub cols: usize,
    pub rows: usize,
    /// Row-major elements.
    pub bytes: Raw,
}

impl Rows {
    /// Copies the rows of a panel. None: the panel reaches beyond the bytes of its tensor, so there are no rows to send.
    pub(crate) fn of(panel: &RowPanel) -> Option<Self> {
        let row = panel.cols.checked_mul(panel.elem.size())?;
        let start = panel.first_row.checked_mul(row)?;
        let bytes = panel.data.get(start..start.checked_add(panel.rows.checked_mul(row)?)?)?;
        Some(Self { elem: panel.elem, cols: panel.cols, rows: panel.rows, bytes: Raw(Arc::new(bytes.to_vec())) })
    }

    /// Gives the rows to a patch as a panel. None: there are more or fewer bytes than columns, rows and element type say; a
    /// host never writes that, so the file or the process that it came from is damaged or lies.
    pub(crate) fn lend(&self) -> Option<RowPanel> {
        let length = self.cols.checked_mul(self.rows)?.checked_mul(self.elem.size())?;
        if length != self.bytes.0.len() {
            return None;
        }
        let data = TensorBytes::new(Arc::clone(&self.bytes.0) as Arc<dyn AsRef<[u8]> + Send + Sync>, 0..length)?;
        Some(RowPanel { data, elem: self.elem, cols: self.cols, first_row: 0, rows: self.rows })
    }
}

/// Bytes that serde writes in one piece. As a list it would write each by itself, which takes a hundred times as long for
/// the million bytes of a panel.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw(pub Arc<Vec<u8>>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            // Of a slice that was read already, so its length is no promise.
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Raw, E> {
                Ok(Raw(Arc::new(bytes.to_vec())))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Question {
    /// The function that was called; none: the host dropped what watches a refit.
    pub fn function(&self) -> Option<Function> {
        Some(match self {
            Question::Resolve { .. } => Function::Resolve,
            Question::Decide { .. } => Function::Decide,
            Question::Activation(_) => Function::Activation,
            Question::Scales { .. } => Function::Scales,
            Question::ScalesWithMoments { .. } => Function::ScalesWithMoments,
            Question::PanelScales { .. } => Function::PanelScales,
            Question::ActivationScales(_) => Function::ActivationScales,
            Question::Passes { .. } => Function::Passes,
            Question::Admit { .. } => Function::Admit,
            Question::Masked { .. } => Function::Masked,
            Question::Begin { .. } => Function::Begin,
            Question::Tensors { .. } => Function::Tensors,
            Question::Finish { .. } => Function::Finish,
            Question::Forget { .. } => return None,
            Question::ExportState => Function::ExportState,
            Question::ImportState(_) => Function::ImportState,
        })
    }

    /// The refit that it belongs to, by the number that [`Answer::Begun`] gave it.
    pub(crate) fn watch(&self) -> Option<u64> {
        match self {
            Question::Tensors { watch, .. } | Question::Finish { watch, .. } | Question::Forget { watch } => {
                Some(*watch)
            }
            _ => None,
        }
    }

    /// What an error says that it was about: a tensor, or the version of a refit.
    pub(crate) fn subject(&self) -> &str {
        match self {
            Question::Begin { version, .. } => version,
            other => other.tensor().unwrap_or_default(),
        }
    }

    /// The tensor that it is about, where it is about one.
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Question::Scales { blocks, .. }
            | Question::ScalesWithMoments { blocks, .. }
            | Question::PanelScales { blocks, .. } => Some(&blocks.tensor),
            _ => None,
        }
    }
}

impl Answer {
    /// What kind of answer it is, for messages: what is in it is not the host's to repeat.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Answer::Placements(_) => "placements",
            Answer::Decisions(_) => "decisions",
            Answer::Activation(_) => "an activation rule",
            Answer::Numbers(_) => "numbers",
            Answer::Passes(_) => "passes",
            Answer::Plan(_) => "a plan",
            Answer::Ranges(_) => "ranges",
            Answer::Begun(..) => "`begun`",
            Answer::Verdict(_) => "a verdict",
            Answer::State(_) => "state",
            Answer::Done => "`done`",
        }
    }
}
