//! A llama.cpp context: the KV buffer and the compute behind it, owned by one thread.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::{Model, SEQ_MAX, SeqId, Token};

/// What a context is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContextParams {
    /// Cells of the KV buffer, shared by all sequences.
    pub(crate) cells: u32,
    /// Most tokens of one [`Context::decode`].
    pub(crate) batch_tokens: u32,
    /// Most tokens computed in one go within it.
    pub(crate) ubatch_tokens: u32,
    /// Sequence ids that may be used: 0..sequences.
    pub(crate) sequences: u32,
    /// Size of the thread pool.
    pub(crate) threads: u32,
    /// `Some` makes hidden states available instead of logits.
    pub(crate) embeddings: Option<Pooling>,
}

/// How hidden states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// One vector per token; the caller averages.
    PerToken,
    /// What the model file says; needs the whole input in one ubatch.
    Model,
}

/// Why a batch was not computed. Nothing of it is in the KV buffer for `NoRoom`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// No free KV cells.
    NoRoom,
    /// A watched flag was raised; some of the batch may be in the KV buffer.
    Aborted,
    /// llama.cpp's code.
    Failed(i32),
}

/// Tokens to compute in one call.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    tokens: Vec<Token>,
    positions: Vec<i32>,
    sequences: Vec<SeqId>,
    outputs: Vec<i8>,
}

impl Batch {
    /// Adds a token of one sequence. Positions of a sequence are consecutive. Returns the index by
    /// which its output is read.
    pub(crate) fn push(&mut self, token: Token, position: u32, seq: SeqId, output: bool) -> usize {
        self.tokens.push(token);
        self.positions
            .push(i32::try_from(position).expect("contexts are far below 2^31 tokens"));
        self.sequences.push(seq);
        self.outputs.push(i8::from(output));
        self.tokens.len() - 1
    }

    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.outputs.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// The flags that stop a running [`Context::decode`] when any of them is raised.
#[derive(Debug, Default)]
struct Watch {
    flags: RefCell<Vec<Arc<AtomicBool>>>,
}

/// KV buffer, compute buffers and thread pool.
#[derive(Debug)]
pub(crate) struct Context {
    ptr: NonNull<sys::llama_context>,
    memory: sys::llama_memory_t,
    pool: *mut sys::ggml_threadpool,
    watch: Box<Watch>,
    params: ContextParams,
    outputs_of_last: Vec<bool>,
    /// Declared last: freed after the context.
    model: Arc<Model>,
}

// SAFETY: all access goes through `&mut self` or `&self` on the owning thread; the context has no
// thread affinity, it only must not be used by two threads at once, which `!Sync` guarantees.
unsafe impl Send for Context {}

impl Context {
    /// Allocates the KV buffer. Fails when memory does not suffice.
    pub(crate) fn new(model: Arc<Model>, params: ContextParams) -> Option<Self> {
        assert!(params.sequences <= SEQ_MAX && params.ubatch_tokens <= params.batch_tokens);
        let threads = i32::try_from(params.threads).unwrap_or(1).max(1);
        // SAFETY: plain struct of defaults.
        let mut raw = unsafe { sys::llama_context_default_params() };
        raw.n_ctx = params.cells;
        raw.n_batch = params.batch_tokens;
        raw.n_ubatch = params.ubatch_tokens;
        raw.n_seq_max = params.sequences;
        raw.n_threads = threads;
        raw.n_threads_batch = threads;
        // One buffer for all sequences: copying a prefix is a flag per cell, and prompts and
        // decodes of many sequences fit one batch.
        raw.kv_unified = true;
        // Layers with a sliding window keep all cells, so that prefixes can be shared there too.
        raw.swa_full = true;
        raw.no_perf = true;
        if let Some(pooling) = params.embeddings {
            raw.embeddings = true;
            raw.pooling_type = match pooling {
                Pooling::PerToken => sys::LLAMA_POOLING_TYPE_NONE,
                Pooling::Model => sys::LLAMA_POOLING_TYPE_UNSPECIFIED,
            };
        }
        // SAFETY: the model is valid and outlives the context (`Arc` in the struct).
        let ptr = unsafe { sys::llama_init_from_model(model.as_ptr(), raw) };
        let ptr = NonNull::new(ptr)?;

        let watch = Box::new(Watch::default());
        // SAFETY: the watch is boxed, so its address is stable, and it is dropped after the
        // context (see `Drop`).
        unsafe {
            sys::llama_set_abort_callback(
                ptr.as_ptr(),
                Some(should_abort),
                std::ptr::from_ref::<Watch>(&*watch).cast_mut().cast(),
            );
        }
        // SAFETY: plain parameters; the pool is detached and freed in `Drop`.
        let pool = unsafe {
            let mut pool = sys::ggml_threadpool_params_default(threads);
            // Between two steps the cores belong to the HTTP side: wait, do not spin.
            pool.poll = 0;
            sys::ggml_threadpool_new(&raw mut pool)
        };
        if !pool.is_null() {
            // SAFETY: both are valid; the pool outlives its use by the context.
            unsafe { sys::llama_attach_threadpool(ptr.as_ptr(), pool, pool) };
        }
        // SAFETY: valid context; may be NULL for models without memory (encoders).
        let memory = unsafe { sys::llama_get_memory(ptr.as_ptr()) };
        Some(Self {
            ptr,
            memory,
            pool,
            watch,
            params,
            outputs_of_last: Vec::new(),
            model,
        })
    }

    /// Cells of the KV buffer: what was asked for, rounded up by llama.cpp.
    pub(crate) fn cells(&self) -> u32 {
        // SAFETY: reads a field.
        unsafe { sys::llama_n_ctx(self.ptr.as_ptr()) }
    }

    /// Uses that many threads of the pool from the next decode on.
    pub(crate) fn set_threads(&mut self, threads: u32) {
        let threads = i32::try_from(threads.clamp(1, self.params.threads)).unwrap_or(1);
        // SAFETY: sets two integers.
        unsafe { sys::llama_set_n_threads(self.ptr.as_ptr(), threads, threads) };
    }

    /// Flags that abort the following decodes when one of them is raised.
    pub(crate) fn watch(&mut self, flags: impl IntoIterator<Item = Arc<AtomicBool>>) {
        let mut watched = self.watch.flags.borrow_mut();
        watched.clear();
        watched.extend(flags);
    }

    /// Computes the batch. Outputs are valid until the next call.
    pub(crate) fn decode(&mut self, batch: &mut Batch) -> Result<(), DecodeError> {
        let count = batch.tokens.len();
        assert!(
            count > 0 && count <= self.params.batch_tokens as usize,
            "batch of {count} tokens"
        );
        let vocab = self.model.vocab_size();
        assert!(
            batch
                .tokens
                .iter()
                .all(|&token| usize::try_from(token).is_ok_and(|id| id < vocab))
                && batch
                    .sequences
                    .iter()
                    .all(|&seq| u32::try_from(seq).is_ok_and(|id| id < self.params.sequences)),
            "a token or sequence id is out of range"
        );
        self.outputs_of_last.clear();
        let mut counts = vec![1i32; count];
        let mut sequences: Vec<*mut SeqId> =
            batch.sequences.iter_mut().map(std::ptr::from_mut).collect();
        let raw = sys::llama_batch {
            n_tokens: i32::try_from(count).expect("checked against n_batch"),
            token: batch.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: sequences.as_mut_ptr(),
            logits: batch.outputs.as_mut_ptr(),
        };
        // SAFETY: all arrays have `count` entries and live for the call; ids were checked above.
        let code = unsafe { sys::llama_decode(self.ptr.as_ptr(), raw) };
        match code {
            0 => {
                self.outputs_of_last
                    .extend(batch.outputs.iter().map(|&wanted| wanted != 0));
                Ok(())
            }
            1 => Err(DecodeError::NoRoom),
            2 => Err(DecodeError::Aborted),
            code => Err(DecodeError::Failed(code)),
        }
    }

    /// Raw logits of the batch entry `index`, one per token of the vocabulary. The slice may be
    /// changed in place.
    pub(crate) fn logits(&mut self, index: usize) -> &mut [f32] {
        assert!(self.outputs_of_last.get(index) == Some(&true));
        let index = i32::try_from(index).expect("checked against n_batch");
        // SAFETY: the entry was computed with its output flag set, so llama.cpp holds a row of
        // `vocab_size` floats for it until the next decode, which needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.ptr.as_ptr(), index);
            assert!(!row.is_null(), "no logits for a requested output");
            std::slice::from_raw_parts_mut(row, self.model.vocab_size())
        }
    }

    /// Hidden state of the batch entry `index` (contexts with [`Pooling::PerToken`]).
    pub(crate) fn token_embedding(&mut self, index: usize) -> &[f32] {
        assert!(self.outputs_of_last.get(index) == Some(&true));
        let index = i32::try_from(index).expect("checked against n_batch");
        // SAFETY: as for `logits`, with rows of the model's output width.
        unsafe {
            let row = sys::llama_get_embeddings_ith(self.ptr.as_ptr(), index);
            assert!(!row.is_null(), "no embedding for a requested output");
            std::slice::from_raw_parts(row, self.model.embedding_length())
        }
    }

    /// Pooled vector of a sequence of the last batch (contexts with [`Pooling::Model`]); `None`
    /// when the model's pooling gives none.
    pub(crate) fn sequence_embedding(&mut self, seq: SeqId) -> Option<&[f32]> {
        // SAFETY: NULL or a row of the model's output width, valid until the next decode.
        unsafe {
            let row = sys::llama_get_embeddings_seq(self.ptr.as_ptr(), seq);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.model.embedding_length()))
        }
    }

    /// Lets `to` share the cells of the first `length` tokens of `from`.
    pub(crate) fn copy_prefix(&mut self, from: SeqId, to: SeqId, length: u32) {
        if self.memory.is_null() {
            return;
        }
        let length = i32::try_from(length).expect("contexts are far below 2^31 tokens");
        // SAFETY: ids are below `n_seq_max`; in a unified buffer any range may be copied.
        unsafe { sys::llama_memory_seq_cp(self.memory, from, to, 0, length) };
    }

    /// Drops the cells of a sequence from position `from` on. False when the model cannot (it keeps
    /// a running state) and nothing was changed.
    pub(crate) fn remove_from(&mut self, seq: SeqId, from: u32) -> bool {
        if self.memory.is_null() {
            return true;
        }
        let from = i32::try_from(from).expect("contexts are far below 2^31 tokens");
        // SAFETY: the id is below `n_seq_max`.
        unsafe { sys::llama_memory_seq_rm(self.memory, seq, from, -1) }
    }

    /// Whether the first position of the sequence is still in the buffer. Layers with a sliding
    /// window may lose old cells to other sequences.
    pub(crate) fn is_intact(&self, seq: SeqId) -> bool {
        // SAFETY: reads bookkeeping.
        self.memory.is_null() || unsafe { sys::llama_memory_seq_pos_min(self.memory, seq) == 0 }
    }

    /// Computes one token, so that memory is paged in before the first request. False when that
    /// fails.
    pub(crate) fn warm_up(&mut self) -> bool {
        let mut batch = Batch::default();
        batch.push(self.model.bos().unwrap_or(0), 0, 0, true);
        let computed = self.decode(&mut batch).is_ok();
        self.clear();
        computed
    }

    /// Empties the KV buffer.
    pub(crate) fn clear(&mut self) {
        if !self.memory.is_null() {
            // SAFETY: only bookkeeping is reset.
            unsafe { sys::llama_memory_clear(self.memory, false) };
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: freed once; the pool goes after the context that uses it.
        unsafe {
            sys::llama_detach_threadpool(self.ptr.as_ptr());
            sys::llama_free(self.ptr.as_ptr());
            if !self.pool.is_null() {
                sys::ggml_threadpool_free(self.pool);
            }
        }
    }
}

unsafe extern "C" fn should_abort(data: *mut c_void) -> bool {
    // SAFETY: `data` is the boxed `Watch` of the context. ggml calls this on the thread that called
    // `decode`, so the `RefCell` is not shared between threads.
    let watch = unsafe { &*data.cast::<Watch>() };
    watch
        .flags
        .borrow()
        .iter()
        .any(|flag| flag.load(Ordering::Relaxed))
}
