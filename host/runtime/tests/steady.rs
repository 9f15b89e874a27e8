//! A decode step allocates nothing once the buffers of the first steps are there.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use patchhost_kernels::team::Team;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::model::{Logits, Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;
use safetensors::tensor::Dtype;

/// The system's allocator, counting.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const COMMON: &str = r#""hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
"vocab_size": 300, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
"tie_word_embeddings": true, "torch_dtype": "bfloat16""#;

const MOE: &str = r#""architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8,
"num_experts_per_tok": 3, "moe_intermediate_size": 48, "norm_topk_prob": true, "num_key_value_heads": 2, "head_dim": 16"#;

const DENSE: &str = r#""architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 2,
"head_dim": 16"#;

const LATENT: &str = r#""architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "n_routed_experts": 8,
"num_experts_per_tok": 3, "moe_intermediate_size": 48, "n_shared_experts": 1, "first_k_dense_replace": 1,
"num_key_value_heads": 4, "q_lora_rank": 40, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
"v_head_dim": 16"#;

fn checkpoint(engine: &Engine) -> Checkpoint {
    let mut state = 1u32;
    let mut tensors = Vec::new();
    for (param, decl) in engine.registry().params().iter().enumerate() {
        for part in 0..decl.part_count() {
            let Some(name) = engine.registry().checkpoint_name_of(param, part) else { continue };
            let rows = decl.part(part).rows;
            let shape = decl.cols.map_or(vec![rows], |cols| vec![rows, cols]);
            let values = (0..shape.iter().product::<usize>()).flat_map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bf16::from_f32((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
            });
            let bytes: Vec<u8> = values.collect();
            let len = bytes.len();
            let data = TensorBytes::new(Arc::new(bytes), 0..len).unwrap();
            tensors.push(CheckpointTensor::new(name, Dtype::BF16, shape, data));
        }
    }
    Checkpoint::from_tensors(tensors).unwrap()
}

/// One test only: the count is of the whole process.
#[test]
fn decoding_allocates_nothing() {
    for family in [MOE, DENSE, LATENT] {
        let config = format!("{{{family}, {COMMON}}}");
        // The host's own expert loaders, for the first load: no patch is needed here.
        let options = EngineOptions { simulate_loader_loss: true, ..EngineOptions::default() };
        let engine = Engine::new(&config, options).unwrap();
        engine.refit(&checkpoint(&engine), &RefitHooks::default(), &|_, _, _| {}).unwrap();
        let (model, weights) = (engine.model(), engine.live().unwrap());
        let mut caches = [model.new_cache(), model.new_cache()];
        caches.iter_mut().for_each(|cache| cache.reserve(400));
        let mut logits = Logits::default();
        let mut step = |tokens: &[&[u32]; 2]| {
            let [a, b] = &mut caches;
            let mut batch = [Sequence { tokens: tokens[0], cache: a }, Sequence { tokens: tokens[1], cache: b }];
            let before = COUNT.load(Ordering::Relaxed);
            model.forward_into(&weights, &mut batch, Rows::Last, &mut logits).unwrap();
            COUNT.load(Ordering::Relaxed) - before
        };
        assert!(step(&[&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[9; 100]]) > 0, "the counter does not count");
        let mut counts = Vec::new();
        for i in 0..200u32 {
            counts.push(step(&[&[i], &[i * 7 % 300]]));
        }
        // On each thread the scores of attention grow with the text, by doubling, and buffers are made when the thread
        // first takes a task of a kind. Nothing else allocates.
        let (steady, grown): (Vec<usize>, Vec<usize>) = counts[8..].iter().partition(|n| **n == 0);
        let most = 6 * Team::global().threads();
        assert!(grown.len() <= most && grown.len() < steady.len(), "{family}: {grown:?}, {} without", steady.len());
        for cache in &caches {
            assert_eq!(cache.bytes(), model.cache_bytes(cache.len()));
        }
        // Two layers in f32: per position a latent and one rotated key, or keys and values of two heads in blocks of 16.
        let numbers = |positions| if family == LATENT { positions * (32 + 8) } else { 16 * 2 * 2 * 16 };
        assert!([1, 7, 16].iter().all(|n| model.cache_bytes(*n) == 2 * 4 * numbers(*n)));
    }
}
