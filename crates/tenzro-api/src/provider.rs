//! Who answered and what it cost, in the headers of an answer: where a node chose a provider.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::GenerateEvent;
use tenzro_protocol::openai::total_cost;

/// The wallet that is paid, or `local`.
const PROVIDER: HeaderName = HeaderName::from_static("x-tenzro-provider");
/// Wei that were paid. An answer that is streamed has it in its usage.
const COST: HeaderName = HeaderName::from_static("x-tenzro-cost");

/// What the events of an answer have said so far.
#[derive(Debug, Default)]
pub(crate) struct Provider {
    /// Several where the choices of one request went to several.
    names: Vec<String>,
    /// Of each choice that has ended.
    costs: Vec<Option<Wei>>,
}

impl Provider {
    /// Of an answer that is complete.
    pub(crate) fn named(name: Option<String>, cost: Option<Wei>) -> Self {
        Self {
            names: name.into_iter().collect(),
            costs: vec![cost],
        }
    }

    pub(crate) fn note(&mut self, event: &GenerateEvent) {
        match event {
            GenerateEvent::Started(started) => {
                if let Some(name) = &started.provider
                    && !self.names.contains(name)
                {
                    self.names.push(name.clone());
                }
            }
            GenerateEvent::Finished(finished) => {
                self.costs.push(finished.usage.cost);
            }
            GenerateEvent::Delta(_) => {}
        }
    }

    /// Puts on what is known by now.
    pub(crate) fn head(&self, mut response: Response) -> Response {
        if self.names.is_empty() {
            return response;
        }
        let cost = total_cost(self.costs.iter().copied());
        let cost = cost.map(|Wei(cost)| cost.to_string());
        for (name, value) in [(PROVIDER, Some(self.names.join(", "))), (COST, cost)] {
            let value = value.and_then(|value| HeaderValue::from_str(&value).ok());
            if let Some(value) = value {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use tenzro_protocol::inference::{Delta, FinishReason, Finished, Started, Usage};

    use super::*;

    fn headers(events: &[GenerateEvent]) -> (Option<String>, Option<String>) {
        let mut provider = Provider::default();
        events.iter().for_each(|event| provider.note(event));
        let response = provider.head(Response::new(Body::empty()));
        let [name, cost] = ["x-tenzro-provider", "x-tenzro-cost"].map(|name| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().expect("ASCII").to_owned())
        });
        (name, cost)
    }

    fn started(provider: Option<&str>) -> GenerateEvent {
        GenerateEvent::Started(Started {
            prompt_tokens: 1,
            cached_tokens: 0,
            queued: Duration::ZERO,
            provider: provider.map(str::to_owned),
        })
    }

    fn finished(cost: Option<u128>) -> GenerateEvent {
        GenerateEvent::Finished(Finished {
            reason: FinishReason::Stop,
            usage: Usage {
                cost: cost.map(Wei),
                ..Usage::default()
            },
            late_tokens: 0,
        })
    }

    #[test]
    fn an_answer_says_who_gave_it_and_what_all_its_choices_cost() {
        let text = || GenerateEvent::Delta(Delta::default());
        let some = |text: &str| Some(text.to_owned());
        // As far as a stream is known when it begins.
        assert_eq!(
            headers(&[started(Some("0xa")), text()]),
            (some("0xa"), None)
        );
        let whole = [started(Some("0xa")), text(), finished(Some(7))];
        assert_eq!(headers(&whole), (some("0xa"), some("7")));
        let two = [
            started(Some("0xa")),
            started(Some("0xb")),
            finished(Some(7)),
            finished(Some(5)),
        ];
        assert_eq!(headers(&two), (some("0xa, 0xb"), some("12")));
        assert_eq!(
            headers(&[started(Some("0xa")), finished(None)]),
            (some("0xa"), None)
        );
        let half = [started(Some("0xa")), finished(Some(7)), finished(None)];
        assert_eq!(headers(&half), (some("0xa"), None));
        // A model server says nothing about it, whatever the engine behind it cost.
        assert_eq!(headers(&[started(None), finished(Some(7))]), (None, None));
    }
}
