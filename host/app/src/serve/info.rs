//! What the server is, by the names that clients of vLLM and SGLang ask for: `/server_info` and `/get_server_info`,
//! `/model_info` and `/get_model_info`.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::doors::Door;
use super::error::{ApiResult, ErrorBody};
use super::json::{Json, UrlQuery};
use super::state::App;

/// Nothing here bounds the rank of an adapter or how many there are; clients want a number.
const UNBOUNDED: u32 = 1 << 20;

/// How vLLM writes its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ConfigFormat {
    /// As one line of text.
    Text,
    /// As an object.
    #[default]
    Json,
}

/// Query of `/server_info`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct InfoQuery {
    /// How `vllm_config` is written: `json` (the default) or `text`.
    #[param(inline)]
    config_format: ConfigFormat,
}

/// What the server is, as clients of vLLM and SGLang ask for it
///
/// SGLang's fields stand at the top; `vllm_config` has vLLM's.
#[utoipa::path(get, path = "/server_info", tag = "rl", params(InfoQuery), responses(
    (status = 200, description = "What it is", body = Object),
    (status = "4XX", description = "The query is wrong", body = ErrorBody),
))]
async fn server_info(State(app): State<Arc<App>>, UrlQuery(query): UrlQuery<InfoQuery>) -> Json<Value> {
    Json(server(&app, query.config_format))
}

/// The same by SGLang's older name
#[utoipa::path(get, path = "/get_server_info", tag = "rl", responses((status = 200, description = "What it is", body = Object)))]
async fn get_server_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(server(&app, ConfigFormat::Json))
}

/// What model this is, as SGLang says it
#[utoipa::path(get, path = "/model_info", tag = "rl", responses((status = 200, description = "What it is", body = Object)))]
async fn model_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(model(&app))
}

/// The same by SGLang's older name
#[utoipa::path(method(get, post), path = "/get_model_info", tag = "rl", responses(
    (status = 200, description = "What it is", body = Object),
))]
async fn get_model_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(model(&app))
}

/// What the live weights are called.
#[derive(Debug, serde::Serialize, ToSchema)]
struct CalledSo {
    /// As the trainer called them.
    weight_version: String,
}

/// What the live weights are called, as SGLang and slime ask for it
#[utoipa::path(get, path = "/get_weight_version", tag = "rl", responses(
    (status = 200, description = "Their name", body = CalledSo),
    (status = 400, description = "None are live", body = ErrorBody),
))]
async fn get_weight_version(State(app): State<Arc<App>>) -> ApiResult<Json<CalledSo>> {
    called_so(&app)
}

/// The same by its other name
#[utoipa::path(get, path = "/weight_version", tag = "rl", responses(
    (status = 200, description = "Their name", body = CalledSo),
    (status = 400, description = "None are live", body = ErrorBody),
))]
async fn weight_version(State(app): State<Arc<App>>) -> ApiResult<Json<CalledSo>> {
    called_so(&app)
}

fn called_so(app: &App) -> ApiResult<Json<CalledSo>> {
    Ok(Json(CalledSo { weight_version: app.rl.version_of(&*app.live.engine().live()?) }))
}

/// What config.json says that clients ask for.
struct Config {
    /// Element type of the weights, by PyTorch's name.
    dtype: String,
    /// How they are quantized.
    quantization: Option<String>,
}

impl Config {
    fn of(app: &App) -> Self {
        let config: Value = serde_json::from_str(&app.live.engine().info().config).unwrap_or_default();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_string);
        let dtype = ["/dtype", "/torch_dtype", "/text_config/dtype", "/text_config/torch_dtype"];
        let dtype = dtype.iter().find_map(|place| text(config.pointer(place)));
        Self {
            // What transformers takes where a config.json is silent.
            dtype: dtype.unwrap_or_else(|| "float32".to_string()).trim_start_matches("torch.").to_string(),
            quantization: text(config.pointer("/quantization_config/quant_method")),
        }
    }
}

fn model(app: &App) -> Value {
    let engine = app.live.engine();
    let live = engine.live().ok();
    json!({
        "model_path": app.model_path(),
        "served_model_name": app.served_name,
        "tokenizer_path": app.model_path(),
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": live.as_ref().map(|w| app.rl.version_of(w)),
        "load_format": "safetensors",
        "reasoning_parser": app.options.reasoning_parser.map(|parser| parser.to_string()),
        "tool_call_parser": app.options.tool_parser.map(|parser| parser.to_string()),
        "disaggregation_mode": "null",
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "model_type": engine.info().model_type,
        "architectures": [engine.info().architecture],
    })
}

fn server(app: &App, format: ConfigFormat) -> Value {
    let engine = app.live.engine();
    let live = engine.live().ok();
    let config = Config::of(app);
    let doors = [("vllm", Door::Vllm), ("sglang", Door::Sglang), ("trl", Door::Trl)];
    let modes: serde_json::Map<String, Value> =
        doors.iter().map(|(name, door)| ((*name).to_string(), json!(app.logprobs_mode(*door)))).collect();
    let vllm = vllm_config(app, &config);
    json!({
        "engine": "patchhost",
        "version": env!("CARGO_PKG_VERSION"),
        "model_path": app.model_path(),
        "tokenizer_path": app.model_path(),
        "served_model_name": app.served_name,
        "architecture": engine.info().architecture,
        "model_type": engine.info().model_type,
        "device": "cpu",
        "dtype": config.dtype,
        "quantization": config.quantization,
        "load_format": "safetensors",
        "is_generation": true,
        "context_length": engine.model().max_positions(),
        "tp_size": 1,
        "dp_size": 1,
        "pp_size": 1,
        "ep_size": 1,
        "disaggregation_mode": "null",
        "enable_memory_saver": false,
        "enable_return_routed_experts": false,
        "max_running_requests": app.options.scheduler.max_num_seqs,
        "max_queued_requests": app.options.scheduler.max_waiting,
        "chunked_prefill_size": app.options.scheduler.max_batched_tokens,
        "weight_version": live.as_ref().map(|w| app.rl.version_of(w)),
        "patch_set": live.as_ref().map(|w| w.patches().to_string()),
        "logprobs_mode": modes,
        "skip_tokenizer_init": false,
        "enable_lora": has_adapters(app),
        "weight_transports": ["safetensors", "bucket", "base64", "path"],
        "roots": !app.roots.is_empty(),
        "internal_states": [app.scheduler.load()],
        "vllm_config": match format {
            ConfigFormat::Json => vllm,
            ConfigFormat::Text => Value::String(vllm.to_string()),
        },
    })
}

fn has_adapters(app: &App) -> bool {
    app.live.board().active().set().lora().is_some()
}

/// The parts of vLLM's configuration that say something here, by vLLM's names. No transfer of weights between processes
/// is configured, ever: they come in requests.
fn vllm_config(app: &App, config: &Config) -> Value {
    let engine = app.live.engine();
    let scheduler = app.options.scheduler;
    let names: Vec<&String> = std::iter::once(&app.served_name).chain(&app.options.aliases).collect();
    json!({
        "model_config": {
            "model": app.model_path(),
            "served_model_name": match names.as_slice() {
                [only] => json!(only),
                several => json!(several),
            },
            "tokenizer": app.model_path(),
            "runner_type": "generate",
            "dtype": format!("torch.{}", config.dtype),
            "quantization": config.quantization,
            "max_model_len": engine.model().max_positions(),
            "max_logprobs": app.options.max_logprobs.map_or(json!(-1), |most| json!(most)),
            "logprobs_mode": app.logprobs_mode(Door::Vllm),
            "architectures": [engine.info().architecture],
        },
        "cache_config": { "enable_prefix_caching": scheduler.prefix_cache_bytes > 0 },
        "parallel_config": {
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "world_size": 1,
            "enable_expert_parallel": false,
        },
        "scheduler_config": {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_batched_tokens,
            "max_model_len": engine.model().max_positions(),
        },
        "device_config": { "device": "cpu", "device_type": "cpu" },
        "load_config": { "load_format": "safetensors" },
        "lora_config": has_adapters(app).then(|| json!({ "max_lora_rank": UNBOUNDED, "max_loras": UNBOUNDED })),
        "speculative_config": null,
        "kv_transfer_config": null,
        "weight_transfer_config": null,
    })
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(server_info))
        .routes(routes!(get_server_info))
        .routes(routes!(model_info))
        .routes(routes!(get_model_info))
        .routes(routes!(get_weight_version))
        .routes(routes!(weight_version))
}
