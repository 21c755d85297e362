//! Writes small GGUF files. Source: `ggml/docs/gguf.md`, version 3.

/// Collects metadata and tensors; values of tensors are zero.
#[derive(Debug, Default, Clone)]
pub struct GgufWriter {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data_bytes: usize,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a string.
    pub fn string(mut self, key: &str, value: &str) -> Self {
        self.key(key, 8);
        put_string(&mut self.entries, value);
        self
    }

    /// Adds an unsigned integer.
    pub fn u32(mut self, key: &str, value: u32) -> Self {
        self.key(key, 4);
        self.entries.extend(value.to_le_bytes());
        self
    }

    /// Adds an array of strings.
    pub fn strings(mut self, key: &str, values: &[&str]) -> Self {
        self.key(key, 9);
        self.entries.extend(8u32.to_le_bytes());
        self.entries.extend((values.len() as u64).to_le_bytes());
        for value in values {
            put_string(&mut self.entries, value);
        }
        self
    }

    /// Adds a tensor of 32-bit floats; `kind` 0 is that type.
    pub fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32) -> Self {
        put_string(&mut self.tensors, name);
        let count = u32::try_from(dimensions.len()).expect("few dimensions");
        self.tensors.extend(count.to_le_bytes());
        for dimension in dimensions {
            self.tensors.extend(dimension.to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data_bytes as u64).to_le_bytes());
        let weights: u64 = dimensions.iter().product();
        let bytes = usize::try_from(weights * 4).expect("small tensors");
        self.data_bytes += bytes.next_multiple_of(32);
        self.tensor_count += 1;
        self
    }

    /// The bytes of the file.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.entry_count.to_le_bytes());
        file.extend(self.entries);
        file.extend(self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.resize(file.len() + self.data_bytes, 0);
        file
    }

    fn key(&mut self, key: &str, kind: u32) {
        put_string(&mut self.entries, key);
        self.entries.extend(kind.to_le_bytes());
        self.entry_count += 1;
    }
}

fn put_string(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

/// A header that reads as a model, followed by `data_bytes` bytes that differ everywhere, so that a
/// shifted or repeated range changes the hash.
pub fn pretend_model(data_bytes: usize) -> Vec<u8> {
    let weights = (data_bytes / 4).max(1) as u64;
    let mut file = GgufWriter::new()
        .string("general.architecture", "llama")
        .string("general.name", "Pretend")
        .u32("llama.context_length", 2048)
        .u32("general.file_type", 15)
        .tensor("weights", &[weights], 0)
        .finish();
    let start = file.len() - data_bytes.min(file.len());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for byte in &mut file[start..] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    file
}
