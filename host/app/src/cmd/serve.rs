//! `patchhost serve`: a model behind OpenAI's API, whose patches and weights can change while it serves.

mod doors;
mod names;
mod traces;
mod words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::files;
use patchhost_runtime::scheduler::{LogprobsMode, Scheduler, SchedulerOptions};
use patchhost_runtime::tokenizer::Tokenizer;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Call;
use super::args::{Format, ModelArgs, PatchArgs};
use super::failure::{HostError, Result, UsageError};
use super::live::{LiveArgs, Needs, Started};
use super::output::plural;
use super::run::print_refit;
use super::session::{Model, this_program};
use crate::base::text::clean;
use crate::checkpoint::bundled;
use crate::live::CanaryUnit;
use crate::patch::Actor;
use crate::serve::{self, Address, App, Endpoint, Listener, ReasoningParser, RlMode, ServeOptions, ToolParser, Traces};
use doors::{DoorArgs, Doors};
use traces::{LAST_SPANS, TraceArgs};
use words::{announce, farewell};

/// Bundled patches that are on by default where text is sampled and adapters are loaded.
const PATCHES: &[&str] = &["vocab_mask", super::lora::PATCH];

/// Serve a model over HTTP (OpenAI's API), and change its patches and weights while it serves
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    live: LiveArgs,
    /// Where to listen: HOST:PORT (port 0 takes a free one) or unix:PATH; can be repeated
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: Vec<Address>,
    /// A unix socket for the admin endpoints; only this user can open it
    #[arg(long, value_name = "unix:PATH", value_parser = socket)]
    admin: Option<PathBuf>,
    /// A file with the token for the admin endpoints
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// A folder that requests may name files in (weights, adapters); can be repeated [default: none]
    #[arg(long = "root", value_name = "DIR")]
    roots: Vec<PathBuf>,
    /// Who may change weights, adapters and pauses: on (whoever reaches the server, where it listens on loopback or unix
    /// sockets only; else who has a token), token, or off
    #[arg(long, value_enum, value_name = "WHO", default_value = "on")]
    rl: RlMode,
    /// A file with the token for the endpoints of --rl; the admin token does too
    #[arg(long, value_name = "FILE")]
    rl_token_file: Option<PathBuf>,
    #[command(flatten)]
    doors: DoorArgs,
    #[command(flatten)]
    traces: TraceArgs,
    /// Take weights that come less precise than the model is declared (an f32 router in bf16), from every sender
    #[arg(long)]
    allow_narrowing: bool,
    /// Largest body of a request that holds weights or an adapter, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = positive)]
    max_weights_body: usize,
    /// Names of the model in requests; answers have the first. The path of its folder is taken too [default: name of the
    /// folder]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    served_model_name: Vec<String>,
    /// A Jinja file to use as the chat template
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Take chat templates from requests (`chat_template`): they are programs
    #[arg(long)]
    trust_request_chat_template: bool,
    /// In which form the model calls tools: hermes, deepseek_v3 or deepseek_v31 [default: the one that its chat template
    /// teaches]
    #[arg(long, value_name = "NAME")]
    tool_call_parser: Option<ToolParser>,
    /// Do not start where the form of the model's calls is not known (elsewhere the model may call tools anyway)
    #[arg(long)]
    enable_auto_tool_choice: bool,
    /// How to take the model's thoughts out of its answers: deepseek_r1 or qwen3 [default: they stay in the text]
    #[arg(long, value_name = "NAME")]
    reasoning_parser: Option<ReasoningParser>,
    /// Leave tools out of the prompt where a request says `tool_choice` none
    #[arg(long)]
    exclude_tools_when_tool_choice_none: bool,
    /// Most sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    max_num_seqs: usize,
    /// Most sequences that wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    max_waiting: usize,
    /// Most prompt tokens of one step: longer prompts are computed in pieces between the tokens of others
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    max_num_batched_tokens: usize,
    /// Memory for the keys and values of prompts that may come again, in MiB; 0 switches it off
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    prefix_cache_mib: usize,
    /// Most sequences of one request (n times prompts)
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    max_choices: usize,
    /// Most connections at once of each address; of more, those are ended first whose clients are waited for longest
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = positive)]
    max_connections: usize,
    /// Most log probabilities per token that a request may ask for; -1: as many as the vocabulary has
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(-1..), allow_negative_numbers = true)]
    max_logprobs: i64,
    /// What log probabilities are computed from, at every endpoint [default: /v1 as vLLM (raw_logprobs), /generate as SGLang
    /// (tempered_logprobs), /generate/ as trl vllm-serve (processed_logprobs)]
    #[arg(long, value_enum, value_name = "MODE")]
    logprobs_mode: Option<Mode>,
    /// vLLM's flag for weights over NCCL, which are not here
    #[arg(long, value_name = "JSON", hide = true)]
    weight_transfer_config: Option<String>,
    /// How long a request may take; a stream, how long it may wait for its next token
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    request_timeout: Duration,
    /// Largest body of a request in MiB (weights have their own limit)
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = positive)]
    max_body: usize,
    /// How long running requests may go on after SIGTERM or SIGINT
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
}

/// [`LogprobsMode`] under the names that vLLM has for it, but for the one that is SGLang's.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Mode {
    /// Log-softmax of the model's logits
    RawLogprobs,
    /// Log-softmax of what is sampled from
    ProcessedLogprobs,
    /// Log-softmax after temperature, penalties and masks, before top-k, top-p and min-p: SGLang's
    TemperedLogprobs,
    /// The model's logits
    RawLogits,
    /// What is sampled from
    ProcessedLogits,
}

impl From<Mode> for LogprobsMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::RawLogprobs => Self::RawLogprobs,
            Mode::ProcessedLogprobs => Self::ProcessedLogprobs,
            Mode::TemperedLogprobs => Self::TemperedLogprobs,
            Mode::RawLogits => Self::RawLogits,
            Mode::ProcessedLogits => Self::ProcessedLogits,
        }
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("give a whole number from 1 on".to_string()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time <= Duration::from_secs(7 * 24 * 3600) => Ok(time),
        Ok(_) => Err("give at most 7 days".to_string()),
        Err(_) => Err("give a time such as 30s, 5m or 1h".to_string()),
    }
}

fn socket(text: &str) -> Result<PathBuf, String> {
    match text.parse() {
        Ok(Address::Unix(path)) => Ok(path),
        _ => Err("give unix:PATH".to_string()),
    }
}

/// vLLM's servers are told over which transport a trainer sends weights; here there is one, which is always there.
fn no_transfer(given: &str) -> UsageError {
    UsageError::new(
        format!("--weight-transfer-config {}", clean(given, 200)),
        "it asks for a group of GPU processes that share tensors (NCCL, IPC), and this host has CPUs only",
        "leave it away: weights come in requests, from TRL by `GRPOTrainer(rollout_func=patchhost.trl.Rollout(URL))`",
    )
}

/// As many open files as this user may have: each connection is one.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const MOST: u64 = 1 << 16;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(MOST).min(MOST);
    if current.is_some_and(|now| now < wanted)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_err()
    {
        tracing::warn!("the limit of open files stays at {}", current.unwrap_or_default());
    }
}

pub fn run(mut args: Args, call: &Call) -> Result {
    let format = call.format;
    names::folder_among(&mut args.served_model_name, &mut args.model.model);
    if let Some(given) = &args.weight_transfer_config {
        return Err(no_transfer(given).into());
    }
    raise_open_files();
    let template = args.chat_template.as_deref().map(read_template).transpose()?;
    let doors = Doors::open(&args)?;
    let traces = args.traces.open()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| HostError::system("the threads of the server", e))?;
    // Before the model is loaded: a port that is taken should not cost that time.
    let listeners = runtime.block_on(bind(&args))?;
    let options = EngineOptions { allow_narrowing: args.allow_narrowing, ..EngineOptions::default() };
    let model = Model::open(&args.model, options)?;
    let tokenizer = match template {
        Some(template) => {
            let tokenizer = model.tokenizer()?.with_template(template);
            Some(tokenizer.with_renderer(crate::text::Renders::new(&this_program()?)))
        }
        // The bundled model, or a copy of it in a folder.
        None if model.folder().is_none_or(bundled::is_tokenizer_of) => {
            let tokenizer = model.tokenizer()?;
            (!tokenizer.has_template()).then(|| tokenizer.with_template(bundled::TEMPLATE.to_string()))
        }
        None => None,
    };
    if format == Format::Text {
        let info = model.engine.info();
        let experts = if info.experts > 0 { format!(", {} experts", info.experts) } else { String::new() };
        outln!("model {} ({}, {} layers{experts})", model.name, info.architecture, info.layers);
    }
    let needs = Needs { patches: PATCHES, canary: CanaryUnit::Request, hash_weights: false };
    let started = Arc::new(args.live.start(model, &args.patches, needs)?);
    let traced = traces.as_ref().map(|(traces, _)| traces.clone());
    let app = Arc::new(app(&args, doors, traced, &started, tokenizer)?);
    let collector = traces.as_ref().map(|(_, endpoint)| endpoint);
    let result = runtime.block_on(serve(&args, app, started, listeners, collector, format));
    if let Some((traces, _)) = &traces {
        traces.shutdown(LAST_SPANS);
    }
    // Does not wait for a load that nobody needs any more.
    runtime.shutdown_background();
    result
}

/// Answers from the start (`/readyz` says no), loads the weights meanwhile, and ends with a signal.
async fn serve(
    args: &Args,
    app: Arc<App>,
    started: Arc<Started>,
    listeners: Vec<Listener>,
    collector: Option<&Endpoint>,
    format: Format,
) -> Result {
    // From here on no signal is missed.
    let listen = |kind| signal(kind).map_err(|e| HostError::system("listening for signals", e));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let hangup = listen(SignalKind::hangup())?;
    let lost = |e: tokio::task::JoinError| HostError::bug("a thread of the server", e);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let addresses: Vec<(String, Option<SocketAddr>)> = listeners.iter().map(|l| (l.to_string(), l.tcp())).collect();
    let mut server = tokio::spawn(serve::run(listeners, Arc::clone(&app), stop));
    let mut load = {
        let started = Arc::clone(&started);
        tokio::task::spawn_blocking(move || started.load())
    };
    let loaded = tokio::select! {
        loaded = &mut load => loaded.map_err(lost)??,
        drained = &mut server => {
            farewell(&drained.map_err(lost)?, format);
            return Ok(());
        }
    };
    if format == Format::Text {
        print_refit(&loaded.report);
    }
    drop(loaded);
    announce(args, &app, &addresses, collector, format);
    let reloads = tokio::spawn(reload_on_hangup(hangup, started, Arc::clone(&app)));
    let drained = server.await.map_err(lost)?;
    reloads.abort();
    farewell(&drained, format);
    Ok(())
}

fn read_template(path: &Path) -> Result<String, UsageError> {
    let refuse = |why: String| {
        UsageError::new(
            format!("--chat-template {}", path.display()),
            why,
            "give a Jinja file, as models have in chat_template.jinja",
        )
    };
    files::read_text(path, files::TEMPLATE).map_err(|e| refuse(e.to_string()))
}

async fn bind(args: &Args) -> Result<Vec<Listener>, UsageError> {
    let mut listeners = Vec::new();
    for address in &args.listen {
        let listener = Listener::bind(address).await.map_err(|e| {
            UsageError::new(
                format!("--listen {address}"),
                e.to_string(),
                "give another address, or stop who listens there",
            )
        })?;
        listeners.push(listener);
    }
    if let Some(path) = &args.admin {
        let listener = Listener::admin(path).map_err(|e| {
            UsageError::new(
                format!("--admin unix:{}", path.display()),
                e.to_string(),
                "give a path in a folder that you can write, where nothing is",
            )
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// What every request of the server shares.
fn app(
    args: &Args,
    doors: Doors,
    traces: Option<Traces>,
    started: &Started,
    tokenizer: Option<Tokenizer>,
) -> Result<App> {
    let live = Arc::clone(&started.live);
    if let Some(traces) = &traces {
        live.tell(traces.listener());
    }
    let tokenizer = match tokenizer {
        Some(tokenizer) => Arc::new(tokenizer),
        None => Arc::clone(&started.tokenizer),
    };
    let weights = {
        let live = Arc::clone(&live);
        Arc::new(move |request: &str| live.weights_for(request))
    };
    let options = SchedulerOptions {
        max_num_seqs: args.max_num_seqs,
        max_waiting: args.max_waiting,
        max_batched_tokens: args.max_num_batched_tokens,
        prefix_cache_bytes: args.prefix_cache_mib.saturating_mul(1 << 20),
        ..SchedulerOptions::default()
    };
    let scheduler = Scheduler::start(Arc::clone(live.engine()), Arc::clone(&tokenizer), weights, options)
        .map_err(|e| HostError::system("the thread of the scheduler", e))?;
    let mut given = args.served_model_name.iter().cloned();
    let name = given.next().unwrap_or_else(|| names::of_folder(started.folder.as_deref()));
    let served = ServeOptions {
        aliases: given.collect(),
        paths: started.folder.as_deref().map(names::paths).unwrap_or_default(),
        request_timeout: args.request_timeout,
        max_body: args.max_body.saturating_mul(1 << 20),
        drain_timeout: args.drain_timeout,
        max_logprobs: usize::try_from(args.max_logprobs).ok(),
        logprobs_mode: args.logprobs_mode.map(Into::into),
        // More could never be queued.
        max_choices: args.max_choices.min(args.max_waiting),
        max_connections: args.max_connections,
        tokenizer_config: names::tokenizer_config(started.folder.as_deref()),
        scheduler: options,
        trust_request_chat_template: args.trust_request_chat_template,
        tool_parser: args.tool_call_parser,
        reasoning_parser: args.reasoning_parser,
        exclude_tools_when_tool_choice_none: args.exclude_tools_when_tool_choice_none,
    };
    let teaches = tokenizer.template(true).and_then(ToolParser::of_template);
    if args.enable_auto_tool_choice && served.tool_parser.or(teaches).is_none() {
        let why =
            "in which form this model calls tools is not known: its chat template teaches none that this server reads";
        let next = format!("give --tool-call-parser ({})", ToolParser::names());
        return Err(UsageError::new("--enable-auto-tool-choice", why, next).into());
    }
    let mut app = App::new(live, tokenizer, scheduler, name, served);
    (app.roots, app.admin, app.rl.auth) = (doors.roots, doors.admin, doors.rl);
    app.rl.renames = args.model.reading.renames.all()?;
    (app.keys, app.hosts, app.traces) = (doors.keys, doors.hosts, traces);
    app.rl.max_body = args.max_weights_body.saturating_mul(1 << 20);
    app.rl.started_with(started.checkpoint.clone());
    Ok(app)
}

/// At every SIGHUP, looks at the given and watched files again; what was refused before is tried again too. So are API keys.
async fn reload_on_hangup(mut hangup: Signal, started: Arc<Started>, app: Arc<App>) {
    while hangup.recv().await.is_some() {
        if app.keys.have_file() {
            match app.keys.reload() {
                Ok(count) => errln!("reload: {}", plural(count, "API key")),
                Err(refusal) => errln!("reload: the API keys stay as they were\n{refusal}"),
            }
        }
        let started = Arc::clone(&started);
        let seen = tokio::task::spawn_blocking(move || started.files.reload(&Actor::new("sighup"))).await;
        for seen in seen.unwrap_or_default() {
            match &seen.outcome {
                Ok(outcome) => errln!("reload: {} {}: {outcome}", seen.path.display(), seen.sha256.short()),
                Err(why) => errln!("reload: {} is not used\n{why}", seen.path.display()),
            }
        }
    }
}
