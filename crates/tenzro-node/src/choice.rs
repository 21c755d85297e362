//! Which endpoint answers a request: a free one of this home before all others, then the one where the
//! request is expected to cost least. Plain functions on plain values.

use tenzro_payments::payer::audit::PromptTokens;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::{EmbedRequest, GenerateError, GenerateRequest};
use tenzro_protocol::network::EndpointInfo;

/// Tokens of an answer, where the request does not say that there are fewer. Source: our choice; chat models
/// seldom say more, whatever they may.
const ANSWER_TOKENS: u32 = 512;

/// How large a request is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) prompt_tokens: u32,
    pub(crate) answer_tokens: u32,
}

impl Demand {
    /// Where no request is known: both directions weigh the same.
    pub(crate) const TYPICAL: Self = Self {
        prompt_tokens: ANSWER_TOKENS,
        answer_tokens: ANSWER_TOKENS,
    };

    pub(crate) fn of_answer(request: &GenerateRequest) -> Self {
        Self {
            prompt_tokens: PromptTokens::of(&request.prompt).likely,
            answer_tokens: request.max_tokens.unwrap_or(u32::MAX).min(ANSWER_TOKENS),
        }
    }

    pub(crate) fn of_vectors(request: &EmbedRequest) -> Self {
        let inputs = request
            .inputs
            .iter()
            .map(|input| PromptTokens::of(input).likely);
        Self {
            prompt_tokens: inputs.fold(0, u32::saturating_add),
            answer_tokens: 0,
        }
    }

    /// Wei at the endpoint's prices; without a price, more than at any other.
    pub(crate) fn cost(self, endpoint: &EndpointInfo) -> u128 {
        let of = |price: Option<Wei>, tokens: u32| {
            price.map_or(u128::MAX, |price| price.0.saturating_mul(tokens.into()))
        };
        let input = of(endpoint.price_per_input_token, self.prompt_tokens);
        input.saturating_add(of(endpoint.price_per_output_token, self.answer_tokens))
    }
}

/// Prices that are paid at most: wei for a token of the prompt and of the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PricesMax {
    pub(crate) input: Option<Wei>,
    pub(crate) output: Option<Wei>,
}

impl PricesMax {
    /// The same in both directions.
    pub(crate) fn both(price: Option<Wei>) -> Self {
        Self {
            input: price,
            output: price,
        }
    }

    fn allow(&self, endpoint: &EndpointInfo) -> bool {
        let is_allowed = |price: Option<Wei>, most: Option<Wei>| {
            most.is_none_or(|most| price.is_some_and(|price| price <= most))
        };
        is_allowed(endpoint.price_per_input_token, self.input)
            && is_allowed(endpoint.price_per_output_token, self.output)
    }
}

/// An endpoint, and how it stands to this node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) endpoint: &'a EndpointInfo,
    pub(crate) relation: Relation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// A local endpoint, or a model server of this home: costs nothing.
    Free,
    /// Its provider is paid.
    Seller,
    /// Its provider has the node's own wallet, which does not pay itself.
    Own,
}

/// Who pays for what.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish<'a> {
    /// Only an endpoint of this provider.
    pub(crate) provider: Option<&'a str>,
    /// The caller's limits.
    pub(crate) caller: PricesMax,
    /// Those of the settings.
    pub(crate) owner: PricesMax,
}

/// The best of the candidates, which all serve the model.
pub(crate) fn choose<'a>(
    model: &str,
    candidates: &[Candidate<'a>],
    demand: Demand,
    wish: &Wish<'_>,
) -> Result<Candidate<'a>, GenerateError> {
    let is_wanted = |one: &Candidate<'_>| {
        let of = one.endpoint.provider.as_deref();
        wish.provider
            .is_none_or(|wanted| of.is_some_and(|of| of.eq_ignore_ascii_case(wanted)))
    };
    let mut asked: Vec<Candidate<'a>> = candidates.iter().copied().filter(is_wanted).collect();
    let first = asked.first().copied();
    asked.retain(|one| one.endpoint.status.is_usable());
    if asked.is_empty() {
        return Err(nobody(model, wish.provider, first));
    }
    asked.retain(|one| one.relation != Relation::Own);
    if asked.is_empty() {
        return Err(own());
    }
    let is_allowed = |one: &Candidate<'_>, most: PricesMax| {
        one.relation == Relation::Free || most.allow(one.endpoint)
    };
    let cheapest = |asked: &[Candidate<'a>]| {
        asked.iter().copied().min_by_key(|one| match one.relation {
            Relation::Free => (false, 0),
            Relation::Seller | Relation::Own => (true, demand.cost(one.endpoint)),
        })
    };
    let best = cheapest(&asked).ok_or_else(own)?;
    asked.retain(|one| is_allowed(one, wish.caller));
    if asked.is_empty() {
        return Err(too_dear_for_caller(best.endpoint));
    }
    asked.retain(|one| is_allowed(one, wish.owner));
    cheapest(&asked).ok_or_else(|| too_dear_for_owner(best.endpoint))
}

fn nobody(model: &str, provider: Option<&str>, first: Option<Candidate<'_>>) -> GenerateError {
    let who = match provider {
        Some(provider) => format!("{} does not serve", short(provider)),
        None => "nobody serves".to_owned(),
    };
    let mut message = format!("{who} {} at this time", short(model));
    if let Some(Candidate { endpoint, .. }) = first {
        let status = serde_json::to_value(endpoint.status).unwrap_or_default();
        let status = status.as_str().unwrap_or_default().replace('_', " ");
        message = format!("{message}: {} is {status}", endpoint.api_endpoint);
    }
    GenerateError::Unavailable { message }
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

fn own() -> GenerateError {
    GenerateError::Unavailable {
        message: "only the node's own wallet sells this model, and it does not pay itself: serve the model \
                  from the node's home"
            .to_owned(),
    }
}

fn too_dear_for_caller(best: &EndpointInfo) -> GenerateError {
    GenerateError::Unavailable {
        message: format!("max_price: {}", prices(best)),
    }
}

fn too_dear_for_owner(best: &EndpointInfo) -> GenerateError {
    GenerateError::Payment {
        code: "spending_limit",
        message: format!(
            "{}; the settings are payments.max_input_price and payments.max_output_price",
            prices(best)
        ),
    }
}

fn prices(best: &EndpointInfo) -> String {
    let wei = |price: Option<Wei>| price.unwrap_or_default().0;
    format!(
        "the model costs {} wei for a token of the prompt and {} for one of the answer, more than may be paid",
        wei(best.price_per_input_token),
        wei(best.price_per_output_token)
    )
}

#[cfg(test)]
mod tests {
    use tenzro_protocol::inference::{ChatMessage, ChatPrompt, Prompt, Sampling};
    use tenzro_protocol::network::{EndpointStatus, Location};

    use super::*;

    fn endpoint(name: &str, input: u128, output: u128) -> EndpointInfo {
        EndpointInfo {
            endpoint_id: name.to_owned(),
            model_id: "m".to_owned(),
            provider: Some(format!("0x{name}")),
            provider_name: None,
            api_endpoint: format!("http://{name}/v1"),
            model_hash: None,
            quantization: None,
            context_length: None,
            price_per_input_token: Some(Wei(input)),
            price_per_output_token: Some(Wei(output)),
            price_version: Some(1),
            next_price: None,
            location: Location::Network,
            status: EndpointStatus::Online,
            missing: Vec::new(),
            latency_ms: None,
            error_rate: None,
            uptime_percent: None,
        }
    }

    fn seller(endpoint: &EndpointInfo) -> Candidate<'_> {
        Candidate {
            endpoint,
            relation: Relation::Seller,
        }
    }

    fn request(text: &str, max_tokens: Option<u32>) -> GenerateRequest {
        GenerateRequest {
            prompt: Prompt::Chat(ChatPrompt {
                messages: vec![ChatMessage {
                    role: "user".to_owned(),
                    content: text.to_owned(),
                    name: None,
                }],
                template_kwargs: Default::default(),
            }),
            max_tokens,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            budget: None,
        }
    }

    fn chosen(candidates: &[Candidate<'_>], demand: Demand, wish: &Wish<'_>) -> String {
        match choose("m", candidates, demand, wish) {
            Ok(one) => one.endpoint.endpoint_id.clone(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_cheapest_is_where_the_whole_request_costs_least() {
        // The bait: answers for almost nothing, and a prompt that costs a fortune.
        let (bait, fair) = (endpoint("bait", 1_000_000, 1), endpoint("fair", 10, 20));
        let both = [seller(&bait), seller(&fair)];
        let wish = Wish::default();
        let short = Demand::of_answer(&request("Hello!", None));
        assert_eq!(chosen(&both, short, &wish), "fair");
        // What is cheap for a long prompt is not for a long answer.
        let (reader, writer) = (endpoint("reader", 1, 30), endpoint("writer", 3, 20));
        let both = [seller(&reader), seller(&writer)];
        let long = Demand::of_answer(&request(&"word ".repeat(10_000), Some(10)));
        assert_eq!(chosen(&both, long, &wish), "reader");
        assert_eq!(chosen(&both, short, &wish), "writer");
        let vectors = Demand::of_vectors(&EmbedRequest {
            inputs: vec![Prompt::Tokens(vec![1; 9]), Prompt::Text("abc".to_owned())],
        });
        assert_eq!((vectors.prompt_tokens, vectors.answer_tokens), (9 + 1, 0));
        assert_eq!(chosen(&both, vectors, &wish), "reader");
    }

    #[test]
    fn what_is_free_comes_first_and_the_own_wallet_is_never_paid() {
        let (own, dear, free) = (
            endpoint("own", 0, 0),
            endpoint("dear", 9, 9),
            endpoint("free", 50, 50),
        );
        let wish = Wish::default();
        let with = |endpoint, relation| Candidate { endpoint, relation };
        let all = [
            with(&own, Relation::Own),
            seller(&dear),
            with(&free, Relation::Free),
        ];
        assert_eq!(chosen(&all, Demand::TYPICAL, &wish), "free");
        assert_eq!(chosen(&all[..2], Demand::TYPICAL, &wish), "dear");
        let refused = chosen(&all[..1], Demand::TYPICAL, &wish);
        assert!(refused.contains("does not pay itself"), "{refused}");
    }

    #[test]
    fn limits_bind_both_directions_and_the_next_best_within_them_answers() {
        let (cheap_answer, cheap_prompt, middle) = (
            endpoint("a", 100, 1),
            endpoint("b", 1, 100),
            endpoint("c", 60, 60),
        );
        let all = [
            seller(&cheap_answer),
            seller(&cheap_prompt),
            seller(&middle),
        ];
        let caller = |price| Wish {
            caller: PricesMax::both(Some(Wei(price))),
            ..Wish::default()
        };
        assert_eq!(chosen(&all, Demand::TYPICAL, &caller(60)), "c");
        let refused = chosen(&all, Demand::TYPICAL, &caller(59));
        assert!(refused.contains("max_price"), "{refused}");
        let owner = Wish {
            owner: PricesMax {
                input: Some(Wei(1)),
                output: None,
            },
            ..Wish::default()
        };
        assert_eq!(chosen(&all, Demand::TYPICAL, &owner), "b");
        let refused = choose("m", &all[..1], Demand::TYPICAL, &owner);
        let is_limit = matches!(
            refused,
            Err(GenerateError::Payment {
                code: "spending_limit",
                ..
            })
        );
        assert!(is_limit, "{refused:?}");
        // A price that nobody knows is above every limit.
        let unpriced = EndpointInfo {
            price_per_input_token: None,
            ..middle.clone()
        };
        assert!(chosen(&[seller(&unpriced)], Demand::TYPICAL, &owner).contains("max_input_price"));
    }

    #[test]
    fn only_usable_endpoints_of_the_wanted_provider_answer() {
        let (mut down, up) = (endpoint("down", 1, 1), endpoint("up", 2, 2));
        down.status = EndpointStatus::Offline;
        let both = [seller(&down), seller(&up)];
        let of = |provider| Wish {
            provider: Some(provider),
            ..Wish::default()
        };
        assert_eq!(chosen(&both, Demand::TYPICAL, &Wish::default()), "up");
        assert_eq!(chosen(&both, Demand::TYPICAL, &of("0xUP")), "up");
        assert_eq!(
            chosen(&both, Demand::TYPICAL, &of("0xdown")),
            "0xdown does not serve m at this time: http://down/v1 is offline"
        );
        assert_eq!(
            chosen(&[], Demand::TYPICAL, &Wish::default()),
            "nobody serves m at this time"
        );
    }
}
