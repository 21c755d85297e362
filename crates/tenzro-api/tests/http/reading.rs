//! Streams of chats, read piece by piece, and the chunks they have.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;

/// A stream of events, read piece by piece.
pub(crate) struct Reading {
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    pub(crate) text: String,
}

impl Reading {
    pub(crate) async fn of(answer: reqwest::Response) -> Self {
        assert_eq!(answer.status(), 200);
        Self {
            bytes: answer.bytes_stream().boxed(),
            text: String::new(),
        }
    }

    /// Reads until the text has this.
    pub(crate) async fn until(&mut self, wanted: &str) {
        while !self.text.contains(wanted) {
            let piece = tokio::time::timeout(Duration::from_secs(10), self.bytes.next()).await;
            let piece = piece.unwrap_or_else(|_| panic!("{wanted} never comes: {}", self.text));
            let piece = piece.unwrap_or_else(|| panic!("no {wanted} in {}", self.text));
            self.text
                .push_str(&String::from_utf8_lossy(&piece.expect("bytes")));
        }
    }

    /// The whole text, without what differs from run to run.
    pub(crate) async fn rest(mut self) -> String {
        while let Some(piece) = self.bytes.next().await {
            self.text
                .push_str(&String::from_utf8_lossy(&piece.expect("bytes")));
        }
        let first = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix("data: {"));
        let first = format!("{{{}", first.expect("a chunk"));
        let first: Value = serde_json::from_str(&first).expect("JSON");
        let Some(id) = first["id"].as_str() else {
            return self.text;
        };
        let created = format!("\"created\":{}", first["created"]);
        self.text
            .replace(id, "ID")
            .replace(&created, "\"created\":0")
    }
}

/// A chunk as it stands in the stream.
pub(crate) fn chunk(index: u32, delta: &str, finish: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"fake\",\
         \"system_fingerprint\":\"test\",\"choices\":[{{\"index\":{index},\"delta\":{delta},\
         \"logprobs\":null,\"finish_reason\":{finish}}}]{usage}}}\n\n"
    )
}

pub(crate) const ROLE: &str = r#"{"role":"assistant","content":""}"#;

pub(crate) fn says(text: &str) -> String {
    chunk(0, &format!("{{\"content\":\"{text}\"}}"), "null", "")
}
