//! Whether a challenge asks for what the payer expects: its payee, its ledger, and no more than the price
//! that the registry shows.

use alloy::primitives::{Address, B256};
use mpp::PaymentChallenge;
use mpp::protocol::core::parse_www_authenticate_all;
use tenzro_protocol::amount::Wei;

use crate::price::{Pricing, Tokens, WINDOW_TOKENS};
use crate::voucher::Domain;
use crate::wire::{BY_AUTHORIZATION, INTENT, METHOD, SessionRequest, UNIT};

/// Longest challenge id and realm in bytes: both come back in every credential.
const NAME_BYTES_MAX: usize = 1_024;

/// Tokens of one answer that are paid for at most, also where its context is said to be longer or nothing is
/// said of it. Source: our choice, the context of most models that are served today.
const ANSWER_TOKENS_MAX: u32 = 128 << 10;
/// Vouchers that a window is paid with, at least. A voucher may pass what is due and paid ahead by the payee's
/// least step.
const STEPS: u128 = 4;

/// What the caller knows of a seller, from the registry and not from the seller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The payee: the endpoint's provider.
    pub payee: Address,
    /// The model's id on the network.
    pub model: String,
    /// SHA-256 of its file, where the registry has it.
    pub model_hash: Option<B256>,
    /// Wei for a token of the prompt, at most.
    pub input_price_max: u128,
    /// Wei for a token of the answer, at most.
    pub output_price_max: u128,
    /// Output tokens that are paid ahead, at most.
    pub window_tokens_max: u32,
    /// Tokens of one answer that are paid for, at most: as many as the model's context can hold.
    pub answer_tokens_max: u32,
}

impl Expected {
    /// What is paid for of one answer at most, of a model whose context is said to hold so many tokens.
    pub fn answer_tokens_max(context_length: Option<u32>) -> u32 {
        context_length.unwrap_or(u32::MAX).min(ANSWER_TOKENS_MAX)
    }
}

/// The escrow and the token that a payer pays with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Market {
    /// The escrow on its chain.
    pub domain: Domain,
    /// The token contract.
    pub token: Address,
}

/// A challenge that was checked.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What is answered.
    pub challenge: PaymentChallenge,
    /// Who is paid.
    pub payee: Address,
    /// What it costs.
    pub pricing: Pricing,
    /// SHA-256 of the model's file, where the payee names it.
    pub model_hash: Option<B256>,
    /// Wei that the payee would like to see in a new channel; zero where it does not say.
    pub suggested_deposit: u128,
    /// Wei by which a voucher has to exceed the one before; at most the price of a quarter of a window.
    pub voucher_step: u128,
    /// Whether the payee submits signed deposits.
    pub takes_authorizations: bool,
    /// Unix seconds after which the challenge is worth nothing.
    pub expires_at: Option<u64>,
}

/// Why a challenge is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Not a challenge of this payment method, or not a valid one.
    #[error("the provider's payment challenge is not understood: {0}")]
    Format(String),
    /// Its time is over.
    #[error("the provider's payment challenge has expired")]
    Expired,
    /// Somebody else is to be paid, or on another ledger.
    #[error("the provider asks for payment to another {what}: {found}, not {expected}")]
    Other {
        /// Which of them.
        what: &'static str,
        /// In the challenge.
        found: String,
        /// By the registry.
        expected: String,
    },
    /// More is asked for than the registry shows.
    #[error(
        "the provider asks for {asked} wei for each {what} token, but its registered price is {registered} wei"
    )]
    Dearer {
        /// `input` or `output`.
        what: &'static str,
        /// In the challenge.
        asked: u128,
        /// By the registry.
        registered: u128,
    },
    /// Too much is to be paid ahead.
    #[error("the provider wants {asked} tokens paid ahead; at most {most} are")]
    Window {
        /// In the challenge.
        asked: u32,
        /// By the caller.
        most: u32,
    },
}

impl Terms {
    /// Checks a challenge at `now` (Unix seconds).
    pub fn check(
        challenge: PaymentChallenge,
        market: &Market,
        expected: &Expected,
        now: u64,
    ) -> Result<Self, TermsError> {
        let format = |reason: &str| TermsError::Format(reason.to_owned());
        if challenge.method.as_str() != METHOD || challenge.intent.as_str() != INTENT {
            return Err(format("it is for another method"));
        }
        if challenge.id.len() > NAME_BYTES_MAX || challenge.realm.len() > NAME_BYTES_MAX {
            return Err(format("its id or realm is too long"));
        }
        let decoded = challenge.request.decode();
        let request: SessionRequest =
            decoded.map_err(|error| TermsError::Format(error.to_string()))?;
        if request
            .unit_type
            .as_deref()
            .is_some_and(|unit| unit != UNIT)
        {
            return Err(format("it prices something else than tokens"));
        }
        expect("payee", request.recipient, expected.payee)?;
        let method = &request.method_details;
        expect("chain", method.chain_id, market.domain.chain_id)?;
        expect("escrow", method.escrow_contract, market.domain.escrow)?;
        expect("token", request.currency, market.token)?;
        if let Some(model) = &request.model {
            expect("model", model.id.as_str(), expected.model.as_str())?;
            if let (Some(found), Some(registered)) = (model.hash, expected.model_hash) {
                expect("model file", found, registered)?;
            }
        }
        let pricing = pricing(&request, expected)?;
        let window = pricing.cost(Tokens::output(pricing.window_tokens));
        let window = window.ok_or_else(|| format("its prices are too high"))?;
        let voucher_step = method.min_voucher_delta.map_or(0, |step| step.0);
        if voucher_step > window / STEPS {
            return Err(format(
                "its least voucher is larger than a quarter of a window",
            ));
        }
        let expires_at = expiry(&challenge)?;
        if expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Err(TermsError::Expired);
        }
        let types = method.credential_types.iter().flatten();
        let takes_authorizations = method.fee_payer == Some(true)
            && types.into_iter().any(|kind| kind == BY_AUTHORIZATION);
        Ok(Self {
            challenge,
            payee: request.recipient,
            pricing,
            model_hash: request.model.and_then(|model| model.hash),
            suggested_deposit: request.suggested_deposit.map_or(0, |deposit| deposit.0),
            voucher_step,
            takes_authorizations,
            expires_at,
        })
    }

    /// Checks the challenge of this method among the values of `WWW-Authenticate`.
    pub fn offered<'a>(
        headers: impl IntoIterator<Item = &'a str>,
        market: &Market,
        expected: &Expected,
        now: u64,
    ) -> Result<Self, TermsError> {
        let challenges = parse_www_authenticate_all(headers);
        let ours = challenges.into_iter().flatten().find(|challenge| {
            challenge.method.as_str() == METHOD && challenge.intent.as_str() == INTENT
        });
        let none = || TermsError::Format("there is none of this method".to_owned());
        Self::check(ours.ok_or_else(none)?, market, expected, now)
    }

    /// Whether a credential made now reaches the payee in time, with `seconds` to spare.
    pub fn holds_at(&self, now: u64, seconds: u64) -> bool {
        let until = now.saturating_add(seconds);
        self.expires_at.is_none_or(|expires_at| expires_at > until)
    }
}

fn expect<T: PartialEq + ToString>(
    what: &'static str,
    found: T,
    expected: T,
) -> Result<(), TermsError> {
    if found == expected {
        return Ok(());
    }
    Err(TermsError::Other {
        what,
        found: found.to_string().chars().take(80).collect(),
        expected: expected.to_string(),
    })
}

fn pricing(request: &SessionRequest, expected: &Expected) -> Result<Pricing, TermsError> {
    let amount = request.amount.0;
    let pricing = request.pricing.unwrap_or(Pricing {
        input_per_token: Wei(amount),
        output_per_token: Wei(amount),
        price_version: 0,
        window_tokens: WINDOW_TOKENS.min(expected.window_tokens_max),
    });
    let prices = [
        ("input", pricing.input_per_token.0, expected.input_price_max),
        // Whoever reads only `amount` would be charged that.
        (
            "output",
            pricing.output_per_token.0.max(amount),
            expected.output_price_max,
        ),
    ];
    for (what, asked, registered) in prices {
        if asked > registered {
            return Err(TermsError::Dearer {
                what,
                asked,
                registered,
            });
        }
    }
    let (asked, most) = (pricing.window_tokens, expected.window_tokens_max);
    if asked == 0 || asked > most {
        return Err(TermsError::Window { asked, most });
    }
    Ok(pricing)
}

fn expiry(challenge: &PaymentChallenge) -> Result<Option<u64>, TermsError> {
    let Some(text) = &challenge.expires else {
        return Ok(None);
    };
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| TermsError::Format("its expiry is no time".to_owned()))?;
    Ok(Some(u64::try_from(time.as_second()).unwrap_or(0)))
}

#[cfg(test)]
pub(crate) mod tests {
    use mpp::protocol::core::Base64UrlJson;
    use serde_json::{Value, json};

    use super::*;

    pub(crate) const NOW: u64 = 1_800_000_000;

    pub(crate) fn market() -> Market {
        Market {
            domain: Domain::new(1337, Address::repeat_byte(0xe5)),
            token: Address::repeat_byte(0x5f),
        }
    }

    pub(crate) fn expected(payee: Address) -> Expected {
        Expected {
            payee,
            model: "m".to_owned(),
            model_hash: Some(B256::repeat_byte(4)),
            input_price_max: 10,
            output_price_max: 30,
            window_tokens_max: 32,
            answer_tokens_max: 1_000,
        }
    }

    pub(crate) fn challenge(request: &Value) -> PaymentChallenge {
        let request = Base64UrlJson::from_value(request).expect("JSON");
        PaymentChallenge::new("challenge-1", "provider", METHOD, INTENT, request)
            .with_expires("2027-01-15T08:10:00Z")
    }

    pub(crate) fn request(payee: Address) -> Value {
        json!({
            "amount": "30",
            "unitType": "llm_token",
            "suggestedDeposit": "100000",
            "currency": Address::repeat_byte(0x5f),
            "recipient": payee,
            "methodDetails": {
                "chainId": 1337,
                "escrowContract": Address::repeat_byte(0xe5),
                "feePayer": true,
                "credentialTypes": ["authorization", "hash"],
            },
            "pricing": {
                "inputPerToken": "10",
                "outputPerToken": "30",
                "priceVersion": 3,
                "windowTokens": 32,
            },
            "model": { "id": "m", "hash": B256::repeat_byte(4) },
        })
    }

    fn check(request: &Value) -> Result<Terms, TermsError> {
        let expected = expected(Address::repeat_byte(9));
        Terms::check(challenge(request), &market(), &expected, NOW)
    }

    #[test]
    fn a_challenge_at_the_registered_price_is_taken() {
        let terms = check(&request(Address::repeat_byte(9))).expect("fair");
        assert_eq!(terms.payee, Address::repeat_byte(9));
        assert_eq!(terms.pricing.price_version, 3);
        assert_eq!(terms.suggested_deposit, 100_000);
        assert!(terms.takes_authorizations);
        assert_eq!(terms.expires_at, Some(NOW + 600));
        assert!(terms.holds_at(NOW, 599) && !terms.holds_at(NOW, 600));
    }

    #[test]
    fn m18_what_differs_from_the_registry_to_the_payers_harm_is_refused() {
        let changes = [
            (
                "/amount",
                json!("31"),
                "asks for 31 wei for each output token",
            ),
            (
                "/pricing/outputPerToken",
                json!("31"),
                "registered price is 30 wei",
            ),
            (
                "/pricing/inputPerToken",
                json!("11"),
                "asks for 11 wei for each input token",
            ),
            (
                "/pricing/windowTokens",
                json!(33),
                "wants 33 tokens paid ahead",
            ),
            (
                "/pricing/windowTokens",
                json!(0),
                "wants 0 tokens paid ahead",
            ),
            (
                "/recipient",
                json!(Address::repeat_byte(8)),
                "another payee",
            ),
            ("/currency", json!(Address::repeat_byte(8)), "another token"),
            ("/methodDetails/chainId", json!(1), "another chain"),
            (
                "/methodDetails/escrowContract",
                json!(Address::ZERO),
                "another escrow",
            ),
            (
                "/methodDetails/minVoucherDelta",
                json!("241"),
                "larger than a quarter of a window",
            ),
            ("/model/id", json!("other"), "another model"),
            ("/model/hash", json!(B256::ZERO), "another model file"),
            ("/unitType", json!("byte"), "something else than tokens"),
        ];
        for (path, value, reason) in changes {
            let mut changed = request(Address::repeat_byte(9));
            match changed.pointer_mut(path) {
                Some(field) => *field = value,
                None => changed["methodDetails"]["minVoucherDelta"] = value,
            }
            let error = check(&changed).expect_err(path).to_string();
            assert!(error.contains(reason), "{path}: {error}");
        }
    }

    #[test]
    fn m18_without_prices_of_its_own_the_amount_is_the_price_of_every_token() {
        let mut plain = request(Address::repeat_byte(9));
        plain.as_object_mut().expect("object").remove("pricing");
        let error = check(&plain).expect_err("30 for input is dearer");
        assert!(error.to_string().contains("each input token"), "{error}");
        plain["amount"] = json!("10");
        let pricing = check(&plain).expect("fair").pricing;
        assert_eq!(pricing.output_per_token, Wei(10));
    }

    #[test]
    fn our_challenge_is_found_among_others() {
        let payee = Address::repeat_byte(9);
        let ours = challenge(&request(payee)).to_header().expect("a header");
        let mut other = challenge(&request(payee));
        other.intent = "charge".into();
        let other = other.to_header().expect("a header");
        let offered = |headers: &[&str]| {
            let headers = headers.iter().copied();
            Terms::offered(headers, &market(), &expected(payee), NOW)
        };
        let found = offered(&["Basic realm=\"x\"", &other, &ours]).expect("found");
        assert_eq!(found.payee, payee);
        assert!(offered(&["Basic realm=\"x\"", &other]).is_err());
    }

    #[test]
    fn cheaper_offers_are_taken_and_expired_or_foreign_ones_are_not() {
        let payee = Address::repeat_byte(9);
        let mut cheap = request(payee);
        cheap["amount"] = json!("1");
        cheap["pricing"]["outputPerToken"] = json!("1");
        assert_eq!(
            check(&cheap).expect("cheap").pricing.output_per_token,
            Wei(1)
        );
        let at = |now| {
            let challenge = challenge(&request(payee));
            Terms::check(challenge, &market(), &expected(payee), now)
        };
        assert_eq!(at(NOW + 600).expect_err("late"), TermsError::Expired);
        let mut foreign = challenge(&request(payee));
        foreign.intent = "charge".into();
        let refused = Terms::check(foreign, &market(), &expected(payee), NOW);
        assert!(matches!(refused, Err(TermsError::Format(_))));
    }
}
