//! Reads the header of a GGUF file. The file is hostile: every count and length is checked against
//! what the file can hold before anything is allocated, and the tensors must lie within the file.
//!
//! Source: `ggml/docs/gguf.md`, versions 2 and 3, little-endian.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;

/// Longest string that is kept; longer ones are an error. Chat templates stay below 100 KB.
const STRING_BYTES_MAX: u64 = 1 << 20;

/// Metadata entries and tensors; real files have some hundreds and some thousands.
const ENTRIES_MAX: u64 = 1 << 20;

/// Arrays of arrays deeper than this are refused.
const DEPTH_MAX: u32 = 4;

/// What a model file says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GgufHeader {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.license`.
    pub licence: Option<String>,
    /// `<architecture>.context_length`, in tokens.
    pub context_length: Option<u64>,
    /// Tag of `general.file_type`, such as `Q4_K_M`.
    pub quantization: Option<String>,
    /// `tokenizer.chat_template`, Jinja source.
    pub chat_template: Option<String>,
    /// SHA-256 over the texts of all tokens: equal for models that share a tokenizer.
    pub tokenizer_sha256: Option<String>,
    /// Weights in all tensors.
    pub parameters: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of this part and of all parts of a split model.
    pub split: Option<(u64, u64)>,
}

/// Why a file is no usable GGUF.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It cannot be read.
    #[error("cannot read the file: {0}")]
    Read(#[from] std::io::Error),
    /// It begins with other bytes.
    #[error("it is not a GGUF file")]
    NotGguf,
    /// A version that nobody writes any more, or yet.
    #[error("GGUF version {0} is not supported")]
    Version(u32),
    /// It ends before its header does, or before its tensors do.
    #[error("the file is truncated: it has {have} bytes and needs at least {need}")]
    Truncated {
        /// Size of the file.
        have: u64,
        /// What its header claims.
        need: u64,
    },
    /// The header contradicts itself or the format.
    #[error("the header is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads the header of the file at `path`.
pub fn read_header(path: &Path) -> Result<GgufHeader, GgufError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    parse_header(BufReader::with_capacity(1 << 16, file), size)
}

/// Reads a header from `input`, which belongs to a file of `size` bytes.
pub(crate) fn parse_header(input: impl Read, size: u64) -> Result<GgufHeader, GgufError> {
    let mut reader = Reader {
        input,
        position: 0,
        size,
    };
    let mut magic = [0; 4];
    match reader.fill(&mut magic) {
        Ok(()) if magic == *b"GGUF" => {}
        Ok(()) | Err(GgufError::Truncated { .. }) => return Err(GgufError::NotGguf),
        Err(error) => return Err(error),
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version(version));
    }
    let tensors = reader.u64()?;
    let entries = reader.u64()?;
    if tensors > ENTRIES_MAX || entries > ENTRIES_MAX {
        return Err(GgufError::Damaged(
            "it counts more entries than any model has",
        ));
    }
    let mut metadata = Metadata::default();
    for _ in 0..entries {
        let key = reader.string()?;
        let kind = reader.u32()?;
        metadata.read(&mut reader, &key, kind)?;
    }
    let (parameters, data_end) = read_tensors(&mut reader, tensors)?;
    let alignment = match metadata.alignment {
        0 => 32,
        alignment if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
        _ => return Err(GgufError::Damaged("the alignment is no small power of two")),
    };
    let data_start = reader.position.next_multiple_of(alignment);
    let need = data_start
        .checked_add(data_end)
        .ok_or(GgufError::Damaged("a tensor lies beyond any file"))?;
    if tensors > 0 && need > size {
        return Err(GgufError::Truncated { have: size, need });
    }
    Ok(metadata.finish(parameters, tensors))
}

/// Number of weights, and the end of the last tensor relative to the data section.
fn read_tensors(reader: &mut Reader<impl Read>, count: u64) -> Result<(u64, u64), GgufError> {
    let overflow = || GgufError::Damaged("a tensor is larger than any file");
    let (mut parameters, mut data_end) = (0u64, 0u64);
    for _ in 0..count {
        reader.string()?;
        let dimensions = reader.u32()?;
        if dimensions > 4 {
            return Err(GgufError::Damaged("a tensor has more than 4 dimensions"));
        }
        let mut weights = 1u64;
        for _ in 0..dimensions {
            weights = weights.checked_mul(reader.u64()?).ok_or_else(overflow)?;
        }
        let kind = reader.u32()?;
        let offset = reader.u64()?;
        parameters = parameters.checked_add(weights).ok_or_else(overflow)?;
        // Types that are newer than this table are only checked by their offset.
        let bytes = match block(kind) {
            Some((block_weights, block_bytes)) => weights
                .div_ceil(block_weights)
                .checked_mul(block_bytes)
                .ok_or_else(overflow)?,
            None => 0,
        };
        let end = offset.checked_add(bytes).ok_or_else(overflow)?;
        data_end = data_end.max(end);
    }
    Ok((parameters, data_end))
}

/// Weights and bytes of a block of a tensor type. Source: `ggml-common.h`.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        16 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        20 => (32, 18),
        21 => (256, 110),
        22 => (256, 82),
        23 => (256, 136),
        24 => (1, 1),
        27 | 28 => (1, 8),
        29 => (256, 56),
        34 => (256, 54),
        35 => (256, 66),
        39 => (32, 17),
        _ => return None,
    })
}

/// Source: `enum llama_ftype` in llama.h.
fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        _ => return None,
    })
}

/// The entries that are of interest.
#[derive(Default)]
struct Metadata {
    header: GgufHeader,
    /// Values of all `*.context_length`, since the architecture may come later.
    context_lengths: Vec<(String, u64)>,
    alignment: u64,
    split: (Option<u64>, Option<u64>),
}

impl Metadata {
    fn read(
        &mut self,
        reader: &mut Reader<impl Read>,
        key: &str,
        kind: u32,
    ) -> Result<(), GgufError> {
        match (key, kind) {
            ("general.architecture", 8) => self.header.architecture = reader.string()?,
            ("general.name", 8) => self.header.name = Some(reader.string()?),
            ("general.license", 8) => self.header.licence = Some(reader.string()?),
            ("tokenizer.chat_template", 8) => self.header.chat_template = Some(reader.string()?),
            ("tokenizer.ggml.tokens", 9) => {
                self.header.tokenizer_sha256 = Some(reader.hash_strings()?);
            }
            (key, kind) if integer_bytes(kind).is_some() => {
                let value = reader.integer(kind)?;
                match key {
                    "general.alignment" => self.alignment = value,
                    "general.file_type" => {
                        self.header.quantization = file_type(value).map(str::to_owned);
                    }
                    "split.no" => self.split.0 = Some(value),
                    "split.count" => self.split.1 = Some(value),
                    key => {
                        if let Some(architecture) = key.strip_suffix(".context_length") {
                            self.context_lengths.push((architecture.to_owned(), value));
                        }
                    }
                }
            }
            _ => reader.skip_value(kind, 0)?,
        }
        Ok(())
    }

    fn finish(self, parameters: u64, tensors: u64) -> GgufHeader {
        let mut header = self.header;
        header.context_length = self
            .context_lengths
            .into_iter()
            .find(|(architecture, _)| *architecture == header.architecture)
            .map(|(_, length)| length);
        header.parameters = parameters;
        header.tensors = tensors;
        header.split = match self.split {
            (Some(number), Some(count)) if count > 1 => Some((number, count)),
            _ => None,
        };
        header
    }
}

/// Size of the unsigned and signed integer types and of bool.
fn integer_bytes(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4 | 5 => Some(4),
        10 | 11 => Some(8),
        _ => None,
    }
}

/// Reads forward and knows how many bytes the file has left.
struct Reader<R> {
    input: R,
    position: u64,
    size: u64,
}

impl<R: Read> Reader<R> {
    /// Fails before reading when the file is too short.
    fn claim(&self, bytes: u64) -> Result<(), GgufError> {
        let need = self.position.saturating_add(bytes);
        if need > self.size {
            return Err(GgufError::Truncated {
                have: self.size,
                need,
            });
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.claim(buffer.len() as u64)?;
        self.input.read_exact(buffer)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn integer(&mut self, kind: u32) -> Result<u64, GgufError> {
        let count = integer_bytes(kind).ok_or(GgufError::Damaged("not an integer"))?;
        let mut bytes = [0; 8];
        self.fill(&mut bytes[..count])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Result<Vec<u8>, GgufError> {
        let length = self.u64()?;
        self.claim(length)?;
        if length > STRING_BYTES_MAX {
            return Err(GgufError::Damaged("a string is longer than 1 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(length).expect("checked above")];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn string(&mut self) -> Result<String, GgufError> {
        self.bytes()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.claim(bytes)?;
        let skipped = std::io::copy(&mut (&mut self.input).take(bytes), &mut std::io::sink())?;
        self.position += skipped;
        if skipped < bytes {
            return Err(GgufError::Truncated {
                have: self.position,
                need: self.position + bytes - skipped,
            });
        }
        Ok(())
    }

    /// Hash over an array of strings, each with its length.
    fn hash_strings(&mut self) -> Result<String, GgufError> {
        if self.u32()? != 8 {
            return Err(GgufError::Damaged("the tokens are no strings"));
        }
        let count = self.u64()?;
        // Each string has a length of 8 bytes at least.
        self.claim(count.saturating_mul(8))?;
        let mut hash = Sha256::new();
        for _ in 0..count {
            let token = self.bytes()?;
            hash.update((token.len() as u64).to_le_bytes());
            hash.update(&token);
        }
        Ok(hex(&hash.finalize()))
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Result<(), GgufError> {
        let fixed = match kind {
            6 => Some(4),
            12 => Some(8),
            kind => integer_bytes(kind).map(|bytes| bytes as u64),
        };
        match (kind, fixed) {
            (_, Some(bytes)) => self.skip(bytes),
            (8, _) => {
                let length = self.u64()?;
                self.skip(length)
            }
            (9, _) if depth < DEPTH_MAX => {
                let element = self.u32()?;
                let count = self.u64()?;
                self.skip_elements(element, count, depth + 1)
            }
            (9, _) => Err(GgufError::Damaged("arrays are nested too deep")),
            _ => Err(GgufError::Damaged("a value has an unknown type")),
        }
    }

    fn skip_elements(&mut self, element: u32, count: u64, depth: u32) -> Result<(), GgufError> {
        let fixed = match element {
            6 => Some(4),
            12 => Some(8),
            element => integer_bytes(element).map(|bytes| bytes as u64),
        };
        if let Some(bytes) = fixed {
            return self.skip(count.saturating_mul(bytes));
        }
        // A string or an array takes 8 bytes at least, so the file bounds the loop.
        self.claim(count.saturating_mul(8))?;
        for _ in 0..count {
            self.skip_value(element, depth)?;
        }
        Ok(())
    }
}

/// For the fuzz target: must return, whatever the bytes are.
#[doc(hidden)]
pub fn fuzz_header(bytes: &[u8]) {
    let _ = parse_header(bytes, bytes.len() as u64);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tenzro_testkit::gguf::GgufWriter;

    use super::*;

    fn sample() -> Vec<u8> {
        GgufWriter::new()
            .string("general.architecture", "llama")
            .string("general.name", "Tiny")
            .u32("llama.context_length", 128)
            .u32("general.file_type", 3)
            .strings("tokenizer.ggml.tokens", &["<s>", "a", "b"])
            .string("tokenizer.chat_template", "{{ messages }}")
            .tensor("weights", &[32, 2], 0)
            .finish()
    }

    fn parse(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
        parse_header(bytes, bytes.len() as u64)
    }

    #[test]
    fn a_header_is_read() {
        let header = parse(&sample()).expect("valid");
        assert_eq!(header.architecture, "llama");
        assert_eq!(header.name.as_deref(), Some("Tiny"));
        assert_eq!(header.context_length, Some(128));
        assert_eq!(header.quantization.as_deref(), Some("Q4_1"));
        assert_eq!(header.chat_template.as_deref(), Some("{{ messages }}"));
        assert_eq!((header.parameters, header.tensors), (64, 1));
        assert_eq!(header.tokenizer_sha256.map(|hash| hash.len()), Some(64));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(
                parse(&whole[..length]).is_err(),
                "{length} of {}",
                whole.len()
            );
        }
    }

    #[test]
    fn claims_that_no_file_can_hold_are_refused_without_allocating() {
        let mut huge = b"GGUF\x03\0\0\0".to_vec();
        huge.extend(0u64.to_le_bytes());
        huge.extend(1u64.to_le_bytes());
        huge.extend(u64::MAX.to_le_bytes());
        assert!(matches!(parse(&huge), Err(GgufError::Truncated { .. })));
        assert!(matches!(parse(b"ELF"), Err(GgufError::NotGguf)));
        assert!(matches!(
            parse(b"GGUF\x01\0\0\0"),
            Err(GgufError::Version(1))
        ));
    }

    proptest! {
        #[test]
        fn damaged_headers_end_in_an_answer(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = sample();
            for (place, value) in changes {
                let at = place.index(bytes.len());
                bytes[at] = value;
            }
            fuzz_header(&bytes);
        }

        #[test]
        fn any_bytes_end_in_an_answer(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(tail);
            fuzz_header(&bytes);
        }
    }
}
