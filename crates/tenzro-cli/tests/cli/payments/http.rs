//! Requests by hand, so that nothing is retried or hidden. HTTP/1.0: an answer ends with its connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer whose body may still be coming.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    body: BufReader<TcpStream>,
}

/// What a streamed answer came to.
#[derive(Debug, Default)]
pub(super) struct Streamed {
    pub(super) text: String,
    /// Pieces of text: never more than tokens.
    pub(super) pieces: u128,
    pub(super) finish: Option<String>,
    pub(super) usage: Value,
    pub(super) error: Option<String>,
    pub(super) is_complete: bool,
    /// Events with a name.
    pub(super) named: Vec<(String, Value)>,
}

/// Posts a body. `url` is a whole address.
pub(super) fn post(url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let place = url.strip_prefix("http://").expect("http");
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let mut stream = TcpStream::connect(host).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let headers = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let head = format!(
        "POST /{path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{}\r\n",
        body.len(),
        headers.collect::<String>()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .expect("sent");
    let mut body = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        // A server that was killed sends nothing.
        let _ = body.read_line(&mut line);
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines
        .first()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.iter().filter_map(|line| line.split_once(": "));
    Answer {
        status: status.unwrap_or(0),
        headers: headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body,
    }
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The rest of the body.
    pub(super) fn text(mut self) -> String {
        let mut text = String::new();
        let _ = self.body.read_to_string(&mut text);
        text
    }

    /// The whole body, of a success.
    pub(super) fn json(self) -> Value {
        serde_json::from_str(&self.taken()).expect("JSON")
    }

    /// The body of a success, which may be empty.
    pub(super) fn taken(self) -> String {
        let status = self.status;
        let text = self.text();
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The next event of a stream, with its name; none once the connection is over.
    pub(super) fn event(&mut self) -> Option<(String, String)> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.body.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => data.push_str(value),
                _ if line.trim().is_empty() && !data.is_empty() => return Some((name, data)),
                _ => {}
            }
        }
    }

    /// Reads on until so many pieces of text have come in all, or the end.
    pub(super) fn read_pieces(&mut self, streamed: &mut Streamed, pieces: u128) {
        while streamed.pieces < pieces && !streamed.is_complete {
            let Some((name, data)) = self.event() else {
                return;
            };
            if name.is_empty() {
                streamed.take(&data);
            } else {
                streamed
                    .named
                    .push((name, serde_json::from_str(&data).expect("JSON")));
            }
        }
    }

    /// The whole stream.
    pub(super) fn streamed(mut self) -> Streamed {
        let mut streamed = Streamed::default();
        self.read_pieces(&mut streamed, u128::MAX);
        streamed
    }
}

impl Streamed {
    /// Takes a chunk of either endpoint in.
    pub(super) fn take(&mut self, data: &str) {
        if data == "[DONE]" {
            self.is_complete = true;
            return;
        }
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        if let Some(error) = chunk.get("error") {
            self.error = Some(error["message"].as_str().unwrap_or_default().to_owned());
        }
        let choice = &chunk["choices"][0];
        let text = choice["delta"]["content"]
            .as_str()
            .or(choice["text"].as_str());
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.text.push_str(text);
            self.pieces += 1;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish = Some(reason.to_owned());
        }
        if chunk["usage"].is_object() {
            self.usage = chunk["usage"].clone();
        }
    }
}
