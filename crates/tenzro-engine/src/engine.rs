//! The handle: checks a request, turns it into tokens and admits it, or refuses at once.

mod prompt;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::Stream;
use tenzro_protocol::inference::{
    EmbedRequest, Embeddings, EngineGauges, GenerateError, GenerateEvent, GenerateRequest,
};
use tokio::sync::{mpsc, oneshot};

use crate::chat_template::TemplateError;
use crate::cpu;
use crate::error::LoadError;
use crate::llama::{self, Context, ContextParams, Model, SEQ_MAX};
use crate::schedule::{Limits, Sharing};
use crate::tokenizer::Tokenizer;
use crate::worker::{Admission, Bell, Command, Counters, EmbedJob, GenerateJob, Shared, Worker};

/// Default of [`EngineConfig::parallel`]. Source: llama-server's automatic number of slots.
const PARALLEL_DEFAULT: u32 = 4;

/// Default of [`EngineConfig::ctx_size`] where the model was trained for more.
const CTX_SIZE_DEFAULT: u32 = 4096;

/// Most tokens of one step. Source: llama.cpp's default `n_batch`.
const BATCH_TOKENS: u32 = 2048;

/// Tokens that llama.cpp computes in one go within a step. Source: its default `n_ubatch`.
const UBATCH_TOKENS: u32 = 512;

/// Sequence ids for cached prefixes, on top of those of running requests.
const CACHED_SEQUENCES: u32 = 64;

/// Most requests at the same time: what is left of llama.cpp's sequence ids.
const PARALLEL_MAX: u32 = SEQ_MAX - CACHED_SEQUENCES;

/// What to load and how.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The GGUF file; the first part of a split model.
    pub model_path: PathBuf,
    /// Most tokens of prompt and answer of one request. `None` is the smaller of 4096 and what the
    /// model was trained for.
    pub ctx_size: Option<u32>,
    /// Requests computed at the same time; `None` is 4. The KV buffer has room for `parallel`
    /// requests of `ctx_size` tokens; what running requests leave of it caches prefixes.
    pub parallel: Option<u32>,
    /// Layers to put on the GPU, in builds that have a GPU backend; `None` is all.
    pub gpu_layers: Option<u32>,
    /// Compute threads; `None` is one per physical core.
    pub threads: Option<u32>,
    /// Requests that may wait for a place; one more is refused.
    pub queue_size: u32,
}

impl EngineConfig {
    /// All defaults, with a queue of 64.
    pub fn new(model_path: PathBuf) -> Self {
        Self {
            model_path,
            ctx_size: None,
            parallel: None,
            gpu_layers: None,
            threads: None,
            queue_size: 64,
        }
    }
}

/// What was loaded.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// `general.architecture` of the file.
    pub architecture: String,
    /// One line such as `llama 135M Q4_1`.
    pub description: String,
    /// Most tokens of prompt and answer of one request.
    pub context_tokens: u32,
    /// Context length of the training.
    pub context_train_tokens: u32,
    /// Requests computed at the same time.
    pub parallel: u32,
    /// Compute threads.
    pub threads: u32,
    /// Length of an embedding.
    pub embedding_length: usize,
    /// Whether the file brings a chat template.
    pub has_chat_template: bool,
    /// Bytes of the weights.
    pub size_bytes: u64,
    /// What the user should know about this build or file.
    pub warnings: Vec<String>,
}

/// A cheap handle to a loaded model. The last one that is dropped stops the engine.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: Arc<Model>,
    info: ModelInfo,
    tokenizer: Tokenizer,
    commands: SyncSender<Command>,
    bell: Arc<Bell>,
    admission: Arc<Admission>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    seeds: AtomicU64,
}

/// Events of one generation; dropping it cancels the generation.
#[derive(Debug)]
pub struct EngineStream {
    events: mpsc::Receiver<Result<GenerateEvent, GenerateError>>,
    cancel: Arc<AtomicBool>,
    bell: Arc<Bell>,
    /// The last event or an error was delivered.
    is_over: bool,
}

impl Stream for EngineStream {
    type Item = Result<GenerateEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.events.poll_recv(task));
        // The engine was stopped between admission and the first step.
        let next = next.unwrap_or_else(|| Err(shutting_down()));
        self.is_over = matches!(next, Err(_) | Ok(GenerateEvent::Finished(_)));
        Poll::Ready(Some(next))
    }
}

impl Drop for EngineStream {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        // A busy worker sees the flag; one whose jobs are all paused would not.
        if !self.is_over {
            self.bell.ring();
        }
    }
}

impl Engine {
    /// Loads the model, computes one token and starts the engine's thread. Blocks until then;
    /// `progress` is called with 0–1 while the file is read and cancels by returning false.
    pub fn load(
        config: &EngineConfig,
        mut progress: impl FnMut(f32) -> bool,
    ) -> Result<Self, LoadError> {
        let path = &config.model_path;
        std::fs::File::open(path).map_err(|source| LoadError::Read {
            path: path.clone(),
            source,
        })?;
        let gpu_layers = config
            .gpu_layers
            .map_or(i32::MAX, |layers| i32::try_from(layers).unwrap_or(i32::MAX));
        let mut cancelled = false;
        let model = Model::load(path, gpu_layers, |share| {
            let go_on = progress(share);
            cancelled |= !go_on;
            go_on
        })
        .map_err(|reason| {
            if cancelled {
                LoadError::Cancelled
            } else {
                LoadError::Model {
                    path: path.clone(),
                    reason,
                }
            }
        })?;
        let model = Arc::new(model);
        let unsupported = |reason| LoadError::Unsupported {
            path: path.clone(),
            reason,
        };
        if !model.has_tokenizer() {
            return Err(unsupported("the file has no tokenizer"));
        }
        if !model.can_generate() {
            return Err(unsupported("the model needs a separate encoder"));
        }

        let sizes = Sizes::choose(config, &model)?;
        let mut context = Context::new(
            Arc::clone(&model),
            ContextParams {
                cells: sizes.limits_cells(),
                batch_tokens: sizes.batch_tokens,
                ubatch_tokens: UBATCH_TOKENS.min(sizes.batch_tokens),
                sequences: sizes.sequences,
                threads: sizes.threads,
                embeddings: None,
            },
        )
        .ok_or(LoadError::Context {
            ctx_size: sizes.ctx_size,
            parallel: sizes.parallel,
        })?;
        if !context.warm_up() {
            return Err(LoadError::WarmUp);
        }

        let tokenizer = Tokenizer::of(Arc::clone(&model));
        let info = describe(&model, &sizes, tokenizer.template_error());
        let admission = Arc::new(Admission::new(sizes.parallel, config.queue_size));
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        // Room for every admitted request and the bell: `try_send` never finds it full.
        let (commands, receiver) =
            std::sync::mpsc::sync_channel(admission.places_max() as usize + 1);
        let bell = Arc::new(Bell::new(commands.clone()));
        let limits = Limits {
            parallel: sizes.parallel as usize,
            sequences: sizes.sequences as usize,
            cells: context.cells() as usize,
            batch_tokens: sizes.batch_tokens as usize,
            sharing: if model.keeps_state() {
                Sharing::WholeSequence
            } else {
                Sharing::Prefix
            },
        };
        let worker = Worker::new(
            Arc::clone(&model),
            context,
            limits,
            sizes.threads,
            sizes.ctx_size,
            Shared {
                counters: Arc::clone(&counters),
                stop: Arc::clone(&stop),
                bell: Arc::clone(&bell),
            },
        );
        let thread = std::thread::Builder::new()
            .name("tenzro-engine".to_owned())
            .spawn(move || worker.run(&receiver))
            .map_err(LoadError::Thread)?;
        Ok(Self {
            inner: Arc::new(Inner {
                model,
                info,
                tokenizer,
                commands,
                bell,
                admission,
                counters,
                stop,
                thread: Mutex::new(Some(thread)),
                seeds: AtomicU64::new(first_seed()),
            }),
        })
    }

    /// What was loaded.
    pub fn model(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// What the engine is doing.
    pub fn gauges(&self) -> EngineGauges {
        self.inner.counters.read()
    }

    /// Admits a generation or refuses it at once. Renders and tokenizes on the calling thread: a
    /// few milliseconds for a long prompt.
    pub fn generate(&self, request: GenerateRequest) -> Result<EngineStream, GenerateError> {
        let inner = &self.inner;
        let checked = inner.check(&request)?;
        let permit = inner.admission.enter()?;
        // One event a token, plus the first and the last two: sending never finds it full.
        let (sender, events) = mpsc::channel(checked.answer_tokens_max as usize + 4);
        let cancel = Arc::new(AtomicBool::new(false));
        let job = GenerateJob {
            prompt: checked.prompt,
            answer_tokens_max: checked.answer_tokens_max,
            bias: checked.bias,
            request,
            seed: inner.seeds.fetch_add(1, Ordering::Relaxed),
            events: sender,
            cancel: Arc::clone(&cancel),
            arrived: Instant::now(),
            permit,
        };
        inner.submit(Command::Generate(Box::new(job)))?;
        Ok(EngineStream {
            events,
            cancel,
            bell: Arc::clone(&inner.bell),
            is_over: false,
        })
    }

    /// Tokens of the prompt: what [`Started::prompt_tokens`] of this request will say. Refuses what
    /// [`Self::generate`] refuses, a full queue aside. Computes nothing and takes as long as the
    /// calling thread does in [`Self::generate`].
    ///
    /// [`Started::prompt_tokens`]: tenzro_protocol::inference::Started::prompt_tokens
    pub fn count_prompt(&self, request: &GenerateRequest) -> Result<u32, GenerateError> {
        Ok(tokens_u32(self.inner.check(request)?.prompt.len()))
    }

    /// Tokens of all inputs: what [`Embeddings::prompt_tokens`] of this request will say. Refuses
    /// what [`Self::embed`] refuses, a full queue aside.
    pub fn count_inputs(&self, request: &EmbedRequest) -> Result<u32, GenerateError> {
        let inputs = self.inner.check_inputs(request)?;
        Ok(tokens_u32(inputs.iter().map(Vec::len).sum()))
    }

    /// Embeds all inputs, or none. Models that are not made for embedding give the mean of their
    /// last hidden states.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, GenerateError> {
        let inner = &self.inner;
        let inputs = inner.check_inputs(&request)?;
        let permit = inner.admission.enter()?;
        let (reply, answer) = oneshot::channel();
        inner.submit(Command::Embed(EmbedJob {
            inputs,
            reply,
            _permit: permit,
        }))?;
        answer.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    /// Breaks off what is running and waits for the thread to end.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Inner {
    fn submit(&self, command: Command) -> Result<(), GenerateError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(shutting_down());
        }
        self.commands.try_send(command).map_err(|_| shutting_down())
    }

    fn shutdown(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes an idle worker; a busy one sees the flag.
        self.bell.ring();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Sizes that follow from the configuration and the model.
#[derive(Debug)]
struct Sizes {
    ctx_size: u32,
    parallel: u32,
    sequences: u32,
    batch_tokens: u32,
    threads: u32,
}

impl Sizes {
    fn choose(config: &EngineConfig, model: &Model) -> Result<Self, LoadError> {
        let trained = match model.context_train_tokens() {
            0 => CTX_SIZE_DEFAULT,
            tokens => tokens,
        };
        let ctx_size = config
            .ctx_size
            .unwrap_or_else(|| trained.min(CTX_SIZE_DEFAULT));
        check("--ctx-size", ctx_size, 16, trained)?;
        let parallel = config.parallel.unwrap_or(PARALLEL_DEFAULT);
        check("--parallel", parallel, 1, PARALLEL_MAX)?;
        let threads = config.threads.unwrap_or_else(cpu::threads_default);
        check("--threads", threads, 1, 512)?;
        // A running state is as large as the model makes it, for each sequence id.
        let cached = if model.keeps_state() {
            parallel.min(CACHED_SEQUENCES)
        } else {
            CACHED_SEQUENCES
        };
        let sizes = Self {
            ctx_size,
            parallel,
            sequences: parallel + cached,
            batch_tokens: BATCH_TOKENS
                .min(ctx_size.saturating_mul(parallel))
                .max(parallel),
            threads,
        };
        sizes.check_memory(model)?;
        Ok(sizes)
    }

    fn limits_cells(&self) -> u32 {
        self.ctx_size.saturating_mul(self.parallel)
    }

    fn check_memory(&self, model: &Model) -> Result<(), LoadError> {
        let needed_bytes = u64::from(self.ctx_size)
            .saturating_mul(u64::from(self.parallel))
            .saturating_mul(model.kv_cell_bytes());
        match cpu::available_memory_bytes() {
            Some(available_bytes) if needed_bytes > available_bytes => Err(LoadError::Memory {
                needed_bytes,
                available_bytes,
                ctx_size: self.ctx_size,
                parallel: self.parallel,
            }),
            _ => Ok(()),
        }
    }
}

fn check(setting: &'static str, value: u32, least: u32, most: u32) -> Result<(), LoadError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(LoadError::Setting {
        setting,
        value,
        range: format!("between {least} and {most} for this model"),
    })
}

fn describe(model: &Model, sizes: &Sizes, template_error: Option<&TemplateError>) -> ModelInfo {
    let has_chat_template = model.chat_template().is_some();
    let mut warnings = Vec::new();
    if let Some(missing) = missing_instructions(&llama::system_info()) {
        warnings.push(format!(
            "this build lacks {missing} and will be several times slower than it could be: \
             build with RUSTFLAGS=\"-C target-cpu=native\" and without SOURCE_DATE_EPOCH"
        ));
    }
    if !has_chat_template {
        warnings.push("the model has no chat template: chats use ChatML".to_owned());
    }
    if let Some(error) = template_error {
        warnings.push(format!("{error}: chats are refused, completions work"));
    }
    ModelInfo {
        architecture: model.meta("general.architecture").unwrap_or_default(),
        description: model.description(),
        context_tokens: sizes.ctx_size,
        context_train_tokens: model.context_train_tokens(),
        parallel: sizes.parallel,
        threads: sizes.threads,
        embedding_length: model.embedding_length(),
        has_chat_template,
        size_bytes: model.size_bytes(),
        warnings,
    }
}

/// Instruction sets that this processor has and llama.cpp was not compiled for.
fn missing_instructions(system_info: &str) -> Option<&'static str> {
    let compiled = |name: &str| system_info.contains(&format!("{name} = 1"));
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") && !compiled("AVX2") {
            return Some("AVX2");
        }
        if std::arch::is_x86_feature_detected!("fma") && !compiled("FMA") {
            return Some("FMA");
        }
    }
    #[cfg(target_arch = "aarch64")]
    if !compiled("NEON") {
        return Some("NEON");
    }
    let _ = compiled;
    None
}

/// Differs between starts; requests without a seed count on from here.
fn first_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

pub(crate) fn tokens_u32(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

pub(crate) fn invalid(param: &'static str, message: String) -> GenerateError {
    GenerateError::Invalid { param, message }
}

fn shutting_down() -> GenerateError {
    GenerateError::Unavailable {
        message: "the model server is shutting down".to_owned(),
    }
}

/// What [`Admission`] tells a client that has to come back.
pub(crate) fn queue_full(waiting_max: u32, retry_after: Duration) -> GenerateError {
    GenerateError::QueueFull {
        waiting_max,
        retry_after,
    }
}
