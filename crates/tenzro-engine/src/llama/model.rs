//! A loaded model: weights, vocabulary and metadata, read-only.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use super::{Token, log};

/// Weights and vocabulary of one GGUF file.
#[derive(Debug)]
pub(crate) struct Model {
    ptr: NonNull<sys::llama_model>,
    vocab: NonNull<sys::llama_vocab>,
}

// SAFETY: after loading, llama.cpp only reads the model; the functions called here take it as
// `const` and keep no hidden state.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads the file (and its further parts, for a split model). `progress` is called with 0–1 and
    /// cancels by returning false. The error is llama.cpp's own text.
    pub(crate) fn load(
        path: &Path,
        gpu_layers: i32,
        progress: impl FnMut(f32) -> bool,
    ) -> Result<Self, String> {
        Self::read(path, gpu_layers, false, progress)
    }

    /// Loads only what turns text into tokens.
    pub(crate) fn load_vocabulary(path: &Path) -> Result<Self, String> {
        Self::read(path, 0, true, |_| true)
    }

    fn read(
        path: &Path,
        gpu_layers: i32,
        vocab_only: bool,
        mut progress: impl FnMut(f32) -> bool,
    ) -> Result<Self, String> {
        static BACKEND: Once = Once::new();
        log::install();
        // SAFETY: initialises global tables once, before any other call.
        BACKEND.call_once(|| unsafe { sys::llama_backend_init() });

        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| "the path contains a NUL byte".to_owned())?;
        let mut report: &mut dyn FnMut(f32) -> bool = &mut progress;
        // SAFETY: plain struct of defaults.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = gpu_layers;
        params.vocab_only = vocab_only;
        params.load_mode = sys::LLAMA_LOAD_MODE_MMAP;
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = (&raw mut report).cast();
        log::take_last_error();
        // SAFETY: the path is NUL-terminated; `report` outlives the call, which is synchronous.
        let ptr = unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) };
        let ptr = NonNull::new(ptr).ok_or_else(|| {
            log::take_last_error().unwrap_or_else(|| "llama.cpp gave no reason".to_owned())
        })?;
        // SAFETY: the model is valid; its vocabulary lives as long as the model.
        let vocab = unsafe { sys::llama_model_get_vocab(ptr.as_ptr()) };
        let vocab = NonNull::new(vocab.cast_mut()).expect("a loaded model has a vocabulary");
        Ok(Self { ptr, vocab })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::llama_model {
        self.ptr.as_ptr()
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        self.vocab.as_ptr()
    }

    /// Tokens of the vocabulary; valid ids are below it.
    pub(crate) fn vocab_size(&self) -> usize {
        // SAFETY: reads an immutable field.
        let size = unsafe { sys::llama_vocab_n_tokens(self.vocab()) };
        usize::try_from(size).unwrap_or(0)
    }

    /// Whether the vocabulary can turn text into tokens at all.
    pub(crate) fn has_tokenizer(&self) -> bool {
        // SAFETY: reads an immutable field.
        unsafe { sys::llama_vocab_type(self.vocab()) != sys::LLAMA_VOCAB_TYPE_NONE }
    }

    /// Tokens of `text`. `add_special` adds BOS/EOS where the model wants them, `parse_special`
    /// turns the text of control tokens into those tokens.
    pub(crate) fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Vec<Token> {
        let length = i32::try_from(text.len()).expect("requests are far below 2 GiB");
        // A token covers at least one byte, but BOS, EOS and a space prefix come on top.
        let mut tokens: Vec<Token> = vec![0; text.len() + 8];
        loop {
            let room = i32::try_from(tokens.len()).expect("requests are far below 2 GiB");
            // SAFETY: text and token buffers are valid for the lengths given.
            let count = unsafe {
                sys::llama_tokenize(
                    self.vocab(),
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            };
            match usize::try_from(count) {
                Ok(count) => {
                    tokens.truncate(count);
                    return tokens;
                }
                // A negative count is the room that is needed.
                Err(_) => tokens.resize(count.unsigned_abs() as usize, 0),
            }
        }
    }

    /// Appends the bytes of `token` to `out`; control tokens have none unless `special`.
    pub(crate) fn append_piece(&self, token: Token, special: bool, out: &mut Vec<u8>) {
        let mut buffer = [0u8; 64];
        let write = |buffer: &mut [u8]| {
            let room = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
            // SAFETY: the buffer is valid for `room` bytes; ids outside the vocabulary are not
            // passed (checked by the callers: they come from the model or from `valid_token`).
            unsafe {
                sys::llama_token_to_piece(
                    self.vocab(),
                    token,
                    buffer.as_mut_ptr().cast::<c_char>(),
                    room,
                    0,
                    special,
                )
            }
        };
        let count = write(&mut buffer);
        match usize::try_from(count) {
            Ok(count) => out.extend_from_slice(&buffer[..count]),
            Err(_) => {
                let mut large = vec![0u8; count.unsigned_abs() as usize];
                if let Ok(count) = usize::try_from(write(&mut large)) {
                    out.extend_from_slice(&large[..count]);
                }
            }
        }
    }

    /// The text of a token as the vocabulary spells it (`<|im_end|>`), control tokens included.
    pub(crate) fn token_text(&self, token: Token) -> String {
        let mut bytes = Vec::new();
        self.append_piece(token, true, &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the id is one of the vocabulary.
    pub(crate) fn valid_token(&self, token: u32) -> Option<Token> {
        let id = Token::try_from(token).ok()?;
        (usize::try_from(id).ok()? < self.vocab_size()).then_some(id)
    }

    /// End-of-generation tokens (EOS, EOT and their like).
    pub(crate) fn is_end(&self, token: Token) -> bool {
        // SAFETY: reads immutable data; the id is of this vocabulary.
        unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// Tokens that are never text: control and unknown ones.
    pub(crate) fn is_control(&self, token: Token) -> bool {
        let mask = sys::LLAMA_TOKEN_ATTR_CONTROL | sys::LLAMA_TOKEN_ATTR_UNKNOWN;
        // SAFETY: reads immutable data; the id is of this vocabulary.
        unsafe { sys::llama_vocab_get_attr(self.vocab(), token) & mask != 0 }
    }

    /// Beginning-of-text token.
    pub(crate) fn bos(&self) -> Option<Token> {
        // SAFETY: reads an immutable field.
        let token = unsafe { sys::llama_vocab_bos(self.vocab()) };
        (token >= 0).then_some(token)
    }

    /// End-of-text token.
    pub(crate) fn eos(&self) -> Option<Token> {
        // SAFETY: reads an immutable field.
        let token = unsafe { sys::llama_vocab_eos(self.vocab()) };
        (token >= 0).then_some(token)
    }

    /// A metadata value of the file as text.
    pub(crate) fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = vec![0u8; 256];
        loop {
            // SAFETY: key is NUL-terminated, the buffer is valid for its length.
            let length = unsafe {
                sys::llama_model_meta_val_str(
                    self.as_ptr(),
                    key.as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            };
            let length = usize::try_from(length).ok()?;
            if length < buffer.len() {
                buffer.truncate(length);
                return Some(String::from_utf8_lossy(&buffer).into_owned());
            }
            buffer.resize(length + 1, 0);
        }
    }

    /// The chat template of the file, as Jinja source.
    pub(crate) fn chat_template(&self) -> Option<String> {
        // SAFETY: returns NULL or a NUL-terminated string that lives as long as the model.
        let text = unsafe { sys::llama_model_chat_template(self.as_ptr(), std::ptr::null()) };
        if text.is_null() {
            return None;
        }
        // SAFETY: checked for NULL above.
        Some(
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned(),
        )
    }

    /// One line such as `llama 135M Q4_1`.
    pub(crate) fn description(&self) -> String {
        let mut buffer = [0u8; 256];
        // SAFETY: the buffer is valid for its length; the result is NUL-terminated.
        let length = unsafe {
            sys::llama_model_desc(self.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        let length = usize::try_from(length).unwrap_or(0).min(buffer.len() - 1);
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// Context length the model was trained for.
    pub(crate) fn context_train_tokens(&self) -> u32 {
        // SAFETY: reads an immutable field.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) }).unwrap_or(0)
    }

    /// Length of a hidden state.
    pub(crate) fn embedding_length(&self) -> usize {
        // SAFETY: reads an immutable field.
        usize::try_from(unsafe { sys::llama_model_n_embd_out(self.as_ptr()) }).unwrap_or(0)
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> u32 {
        // SAFETY: reads an immutable field.
        u32::try_from(unsafe { sys::llama_model_n_layer(self.as_ptr()) }).unwrap_or(0)
    }

    /// Bytes of all weights.
    pub(crate) fn size_bytes(&self) -> u64 {
        // SAFETY: reads an immutable field.
        unsafe { sys::llama_model_size(self.as_ptr()) }
    }

    /// Bytes that one KV cell takes over all layers, with f16 keys and values. An upper bound for
    /// models that share keys between layers.
    pub(crate) fn kv_cell_bytes(&self) -> u64 {
        // SAFETY: these read immutable fields.
        let (heads, kv_heads, width) = unsafe {
            (
                sys::llama_model_n_head(self.as_ptr()),
                sys::llama_model_n_head_kv(self.as_ptr()),
                sys::llama_model_n_embd(self.as_ptr()),
            )
        };
        let (heads, kv_heads, width) = (
            u64::try_from(heads).unwrap_or(0).max(1),
            u64::try_from(kv_heads).unwrap_or(0),
            u64::try_from(width).unwrap_or(0),
        );
        let arch = self.meta("general.architecture").unwrap_or_default();
        let head_length = |which: &str| {
            self.meta(&format!("{arch}.attention.{which}_length"))
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(width / heads)
        };
        let values =
            kv_heads.saturating_mul(head_length("key").saturating_add(head_length("value")));
        u64::from(self.layers())
            .saturating_mul(values)
            .saturating_mul(2)
    }

    /// Whether the model keeps a running state instead of (or beside) a KV cell for each token, so
    /// that a prefix cannot be cut out of a longer sequence.
    pub(crate) fn keeps_state(&self) -> bool {
        // SAFETY: these read immutable fields.
        unsafe {
            sys::llama_model_is_recurrent(self.as_ptr())
                || sys::llama_model_is_hybrid(self.as_ptr())
        }
    }

    /// Whether some layers see only a sliding window.
    pub(crate) fn has_sliding_window(&self) -> bool {
        // SAFETY: reads an immutable field.
        unsafe { sys::llama_model_n_swa(self.as_ptr()) > 0 }
    }

    /// Whether text can be generated: a decoder without a separate encoder.
    pub(crate) fn can_generate(&self) -> bool {
        // SAFETY: these read immutable fields.
        unsafe {
            sys::llama_model_has_decoder(self.as_ptr())
                && !sys::llama_model_has_encoder(self.as_ptr())
                && !sys::llama_model_is_diffusion(self.as_ptr())
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: owned and freed once; contexts hold an `Arc` and are gone by now.
        unsafe { sys::llama_model_free(self.as_ptr()) };
    }
}

unsafe extern "C" fn on_progress(progress: f32, data: *mut c_void) -> bool {
    // SAFETY: `data` is the `&mut dyn FnMut` of `load`, alive for the whole load.
    let report = unsafe { &mut *data.cast::<&mut dyn FnMut(f32) -> bool>() };
    // A panic must not cross into C++: treat it as a cancelled load.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| report(progress))).unwrap_or(false)
}
