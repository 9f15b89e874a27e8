//! The ways to stop for new weights. The names are those of vLLM (`abort`, `wait`, `keep`) and SGLang (`retract`).

/// What happens to the sequences that run when a pause begins. Jobs that are submitted during any pause wait in the
/// queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// They end, and so do waiting jobs; what they have is given out.
    Abort,
    /// They run to their end; waiting jobs stay in the queue.
    Wait,
    /// They are frozen. After the pause they go on with the newest weights and keep the keys and values of the old ones.
    Keep,
    /// Their keys and values are dropped. After the pause the newest weights compute them anew, and they go on.
    Retract,
}

/// What a pause did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Paused {
    /// Jobs that were aborted.
    pub aborted: usize,
    /// Jobs that ran to their end while the pause waited for them.
    pub waiting_finished: usize,
    /// Jobs that are frozen.
    pub kept: usize,
}
