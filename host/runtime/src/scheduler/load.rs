//! What a metrics endpoint reads.

/// Gauges and counters of a scheduler. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Sequences that run, or are frozen by a pause.
    pub running: usize,
    /// Jobs in the queue.
    pub waiting: usize,
    /// Bytes of keys and values of running sequences.
    pub kv_bytes: usize,
    /// Most of them.
    pub kv_limit: usize,
    /// Entries of the prefix cache.
    pub prefix_entries: usize,
    /// Their bytes.
    pub prefix_bytes: usize,
    /// Counter: prompt tokens that were found in the prefix cache.
    pub prefix_hits: u64,
    /// Counter: prompt tokens that were looked up in it.
    pub prefix_queries: u64,
    /// Counter: prompt tokens of jobs whose prompt is through.
    pub prompt_tokens: u64,
    /// Counter: tokens generated.
    pub generation_tokens: u64,
    /// Counter: jobs that ended with a stop or at their length.
    pub finished: u64,
    /// Counter: jobs that ended with an error.
    pub failed: u64,
    /// Counter: jobs that were aborted, or whose receiver went away.
    pub aborted: u64,
    /// Counter: sequences whose keys and values were dropped to be computed anew.
    pub preempted: u64,
    /// Counter: steps of the decode thread.
    pub steps: u64,
}
