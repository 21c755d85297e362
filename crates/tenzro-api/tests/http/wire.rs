//! HTTP by hand, for requests that no client sends.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Setup;

/// A connection that is written to and read from by hand.
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) async fn open(setup: &Setup) -> Self {
        let connection = TcpStream::connect(setup.server.local_addr()).await;
        Self(connection.expect("connected"))
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("written");
    }

    /// False once the server has closed.
    pub(crate) async fn try_send(&mut self, text: &str) -> bool {
        self.0.write_all(text.as_bytes()).await.is_ok()
    }

    /// One answer: its head, and its body of `content-length` bytes.
    pub(crate) async fn receive(&mut self) -> (String, String) {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.expect("a length").parse().expect("a number");
                if body.len() >= length {
                    assert_eq!(body.len(), length, "more than one answer in {text}");
                    return (head.to_owned(), body.to_owned());
                }
            }
            let count = self.read(&mut bytes).await;
            assert_ne!(count, 0, "closed after {text}");
        }
    }

    pub(crate) async fn read(&mut self, bytes: &mut Vec<u8>) -> usize {
        let read = tokio::time::timeout(Duration::from_secs(10), self.0.read_buf(bytes));
        // A close with unread bytes is a reset.
        read.await.expect("in time").unwrap_or(0)
    }
}

pub(crate) fn head(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}\r\n\r\n")
}

/// A head without what differs from run to run.
pub(crate) fn steady(head: &str) -> Vec<&str> {
    let differs = ["date: ", "x-request-id: ", "openai-processing-ms: "];
    let mut lines: Vec<&str> = head.lines().collect();
    lines.retain(|line| !differs.iter().any(|name| line.starts_with(name)));
    lines
}
