//! A parser of server-sent events for streamed answers. Source: WHATWG HTML, "Server-sent events".
//!
//! Names and data are delivered, since these streams use nothing else; comments and other fields are
//! skipped. Bytes may be cut anywhere.

/// Longest event; a server that sends more is broken or hostile.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// See the module header.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_carriage_return: bool,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Value of its last `event` field; empty where it has none.
    pub name: String,
    /// Its `data` fields, joined by line feeds.
    pub data: String,
}

/// Why a stream cannot be parsed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event is longer than 4 MiB.
    #[error("a streamed event is longer than 4 MiB")]
    TooLong,
    /// An event is not UTF-8.
    #[error("a streamed event is not UTF-8")]
    NotText,
}

impl SseParser {
    /// Adds bytes and returns the data of the events that they complete, in order, whatever their names.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, SseError> {
        let events = self.push_named(bytes)?;
        Ok(events.into_iter().map(|event| event.data).collect())
    }

    /// Adds bytes and returns the events that they complete, in order.
    pub fn push_named(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let follows = std::mem::replace(&mut self.after_carriage_return, byte == b'\r');
            match byte {
                b'\n' if follows => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ if self.line.len() + self.name.len() + self.data.len() >= EVENT_BYTES_MAX => {
                    return Err(SseError::TooLong);
                }
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<SseEvent>, SseError> {
        if self.line.is_empty() {
            let name = std::mem::take(&mut self.name);
            if !std::mem::take(&mut self.has_data) {
                return Ok(None);
            }
            let text = |bytes| String::from_utf8(bytes).map_err(|_| SseError::NotText);
            let data = text(std::mem::take(&mut self.data))?;
            let name = text(name)?;
            return Ok(Some(SseEvent { name, data }));
        }
        let (field, value) = match self.line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&self.line[..colon], &self.line[colon + 1..]),
            None => (&self.line[..], &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.name = value.to_vec(),
            _ => {}
        }
        self.line.clear();
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        pieces
            .iter()
            .flat_map(|piece| parser.push(piece).expect("valid"))
            .collect()
    }

    #[test]
    fn comments_other_fields_and_all_line_ends_are_understood() {
        let stream = b": ping\n\nevent: x\ndata: one\r\n\r\ndata:two\rdata: lines\r\rdata\n\n";
        assert_eq!(parse(&[stream]), vec!["one", "two\nlines", ""]);
    }

    #[test]
    fn a_name_is_that_of_its_own_event_only() {
        let stream = b"event: a\nevent:b\ndata: 1\n\ndata: 2\n\nevent: c\n\ndata: 3\nevent: d\n\n";
        let events = SseParser::default().push_named(stream).expect("valid");
        let event = |name: &str, data: &str| SseEvent {
            name: name.to_owned(),
            data: data.to_owned(),
        };
        let expected = [event("b", "1"), event("", "2"), event("d", "3")];
        assert_eq!(events, expected);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; 1 << 20];
        let results: Vec<_> = (0..5).map(|_| parser.push(&piece)).collect();
        assert_eq!(results[4], Err(SseError::TooLong));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_never_matters(
            stream in "(data: ?[a-zé€]{0,6}|:[a-z]{0,3}|id: 7|\r|\n|\r\n|){0,20}",
            cuts in prop::collection::vec(any::<usize>(), 0..8),
        ) {
            let bytes = stream.as_bytes();
            let mut borders: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            borders.extend([0, bytes.len()]);
            borders.sort_unstable();
            let pieces: Vec<&[u8]> = borders.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), parse(&[bytes]));
        }
    }
}
