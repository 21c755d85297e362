//! The safe layer over llama.cpp: the only `unsafe` in the workspace.
//!
//! A [`Model`] is immutable after loading and may be read from any thread (tokenizing, metadata). A
//! [`Context`] is owned by one thread. Everything that makes llama.cpp abort the process (a batch
//! larger than `n_batch`, a bad sequence id, a token outside the vocabulary) is checked here first.
#![expect(
    unsafe_code,
    reason = "calls into llama.cpp; each block states why it is sound"
)]

mod context;
mod log;
mod model;

pub(crate) use context::{Batch, Context, ContextParams, DecodeError, Pooling};
pub(crate) use model::Model;

use llama_cpp_sys_2 as sys;

/// A token id of the loaded model's vocabulary.
pub(crate) type Token = i32;

/// A sequence of the KV buffer; below [`SEQ_MAX`].
pub(crate) type SeqId = i32;

/// Most sequences llama.cpp can hold. Source: `LLAMA_MAX_SEQ` in llama-cparams.h.
pub(crate) const SEQ_MAX: u32 = 256;

/// What llama.cpp says about the instruction sets it was compiled for.
pub(crate) fn system_info() -> String {
    // SAFETY: returns a pointer to a static, NUL-terminated string.
    unsafe { std::ffi::CStr::from_ptr(sys::llama_print_system_info()) }
        .to_string_lossy()
        .into_owned()
}
