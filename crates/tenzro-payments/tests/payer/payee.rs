//! A payee that keeps to the rules, and whose messages a test can change into those of one that does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alloy::primitives::{Address, B256};
use mpp::protocol::core::Base64UrlJson;
use mpp::{PaymentChallenge, parse_authorization};
use serde_json::json;
use tenzro_payments::payer::Credential;
use tenzro_payments::payer::terms::{Expected, Market, Terms};
use tenzro_payments::price::{Pricing, Tokens};
use tenzro_payments::signature::{Signature, Signer};
use tenzro_payments::voucher::{Domain, Usage, Voucher};
use tenzro_payments::wire::{
    Authorization, ChannelState, NeedVoucher, OpenDeposit, Payload, Problem, Receipt, UsageReceipt,
};
use tenzro_protocol::amount::Wei;

use super::ledger::{Ledger, channel_id, deposit_digest, deposit_nonce};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const WINDOW: u32 = 32;
pub(crate) const PRICING: Pricing = Pricing {
    input_per_token: Wei(10),
    output_per_token: Wei(30),
    price_version: 3,
    window_tokens: WINDOW,
};

const MODEL_HASH: B256 = B256::repeat_byte(4);

pub(crate) fn signer(byte: u8) -> Signer {
    Signer::from_bytes(&B256::repeat_byte(byte)).expect("a key")
}

pub(crate) fn market() -> Market {
    Market {
        domain: Domain::new(1337, Address::repeat_byte(0xe5)),
        token: Address::repeat_byte(0x5f),
    }
}

/// Wei for tokens.
pub(crate) fn cost(input: u32, output: u32) -> u128 {
    PRICING.cost(Tokens { input, output }).expect("small")
}

/// See the module header.
#[derive(Debug, Clone)]
pub(crate) struct Payee {
    pub(crate) signer: Signer,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) suggested: u128,
    /// What its receipts say.
    pub(crate) price_version: u64,
    pub(crate) model_hash: B256,
    pub(crate) books: BTreeMap<B256, Books>,
    nonces: BTreeSet<B256>,
}

/// What it keeps of a channel.
#[derive(Debug, Default, Clone)]
pub(crate) struct Books {
    pub(crate) accepted: Option<Voucher>,
    /// Of requests that are over.
    pub(crate) spent: u128,
    /// By running request: wei charged, and wei that may be charged.
    pub(crate) streams: BTreeMap<u32, (u128, u128)>,
}

impl Books {
    pub(crate) fn amount(&self) -> u128 {
        self.accepted.map_or(0, |voucher| voucher.amount.0)
    }

    pub(crate) fn charged(&self) -> u128 {
        self.spent
            + self
                .streams
                .values()
                .map(|(charged, _)| charged)
                .sum::<u128>()
    }

    fn reserved(&self) -> u128 {
        let streams = self.streams.values();
        self.spent
            + streams
                .map(|(charged, reserved)| charged.max(reserved))
                .sum::<u128>()
    }
}

impl Payee {
    pub(crate) fn new(ledger: &Arc<Ledger>, suggested: u128) -> Self {
        Self {
            signer: signer(9),
            ledger: Arc::clone(ledger),
            suggested,
            price_version: PRICING.price_version,
            model_hash: MODEL_HASH,
            books: BTreeMap::new(),
            nonces: BTreeSet::new(),
        }
    }

    pub(crate) fn terms(&self) -> Terms {
        let request = json!({
            "amount": "30",
            "unitType": "llm_token",
            "suggestedDeposit": self.suggested.to_string(),
            "currency": market().token,
            "recipient": self.signer.address(),
            "methodDetails": {
                "chainId": 1337,
                "escrowContract": market().domain.escrow,
                "feePayer": true,
                "credentialTypes": ["authorization", "hash"],
            },
            "pricing": PRICING,
            "model": { "id": "m", "hash": MODEL_HASH },
        });
        let request = Base64UrlJson::from_value(&request).expect("JSON");
        let challenge = PaymentChallenge::new("challenge", "payee", "evm", "session", request);
        let expected = Expected {
            payee: self.signer.address(),
            model: "m".to_owned(),
            model_hash: None,
            input_price_max: 10,
            output_price_max: 30,
            window_tokens_max: WINDOW,
            answer_tokens_max: 1_000,
        };
        Terms::check(challenge, &market(), &expected, NOW).expect("fair")
    }

    /// What a credential says, without acting on it: channel, voucher, and what is deposited before.
    pub(crate) fn read(credential: &Credential) -> (Voucher, Payload) {
        assert_eq!(credential.header(), "Authorization");
        let parsed = parse_authorization(credential.value()).expect("a credential");
        let payload: Payload = serde_json::from_value(parsed.payload).expect("a payload");
        let voucher = match &payload {
            Payload::Open(open) => match &open.deposit {
                OpenDeposit::Authorization {
                    voucher_signature, ..
                } => Voucher {
                    channel_id: open.channel_id,
                    amount: open.cumulative_amount,
                    signature: *voucher_signature,
                },
                OpenDeposit::Hash { .. } => panic!("our payer signs authorizations"),
            },
            Payload::Voucher(update) => update.voucher,
            Payload::Close(close) => close.voucher,
            Payload::TopUp(_) => panic!("our payer merges top-ups"),
        };
        (voucher, payload)
    }

    /// Checks all signatures, takes the deposit and the voucher. Panics where the payer broke a rule.
    pub(crate) fn take(&mut self, credential: &Credential, request_hash: B256) -> Voucher {
        let (voucher, payload) = Self::read(credential);
        let (id, domain) = (voucher.channel_id, market().domain);
        let payer = signer(1).address();
        let auth = match &payload {
            Payload::Open(open) => {
                if let OpenDeposit::Authorization {
                    authorization,
                    signature,
                    ..
                } = &open.deposit
                {
                    assert_eq!(channel_id(self.signer.address(), open.salt), id);
                    assert_eq!(authorization.nonce, deposit_nonce(id, open.salt, true));
                    self.deposit(id, authorization, signature, true);
                }
                open.request_auth.clone()
            }
            Payload::Voucher(update) => {
                if let Some(merged) = &update.deposit {
                    let authorization = &merged.authorization;
                    assert_eq!(authorization.nonce, deposit_nonce(id, merged.salt, false));
                    self.deposit(id, authorization, &merged.signature, false);
                }
                update.request_auth.clone()
            }
            Payload::Close(close) => close.request_auth.clone(),
            Payload::TopUp(_) => panic!("our payer merges top-ups"),
        };
        assert_eq!(domain.voucher_signer(&voucher), Ok(payer));
        if let Some(auth) = auth {
            assert_eq!(auth.request_hash, request_hash);
            assert_eq!(domain.request_signer(id, "challenge", &auth), Ok(payer));
            assert!(self.nonces.insert(auth.nonce), "a nonce was used twice");
        }
        let held = self.ledger.get(id).expect("a channel").deposit;
        assert!(voucher.amount.0 <= held, "signed above the deposit");
        let books = self.books.entry(id).or_default();
        if voucher.amount.0 > books.amount() {
            books.accepted = Some(voucher);
        }
        voucher
    }

    fn deposit(&self, id: B256, authorization: &Authorization, signature: &Signature, opens: bool) {
        let payer = signer(1).address();
        assert_eq!(signature.signer(deposit_digest(authorization)), Ok(payer));
        assert_eq!(authorization.from, payer);
        assert_eq!(authorization.to, market().domain.escrow);
        let parties = (payer, self.signer.address());
        // Sent twice, the second one reverts and changes nothing.
        self.ledger
            .deposit(id, parties, authorization.value.0, opens);
    }

    /// Reserves the prompt and a window for a request, or says what it needs.
    pub(crate) fn begin(&mut self, id: B256, stream: u32, prompt: u32) -> Result<(), Box<Problem>> {
        let required = {
            let books = self.books.entry(id).or_default();
            let need = cost(prompt, WINDOW);
            let required = books.reserved() + need;
            if books.amount() >= required {
                books.streams.insert(stream, (0, need));
                return Ok(());
            }
            required
        };
        let kind = "https://paymentauth.org/problems/session/insufficient-balance";
        Err(Box::new(Problem {
            kind: kind.to_owned(),
            title: "Insufficient Balance".to_owned(),
            status: 402,
            detail: String::new(),
            channel_id: Some(id),
            required_cumulative: Some(Wei(required)),
            channel: Some(self.state(id)),
        }))
    }

    pub(crate) fn state(&self, id: B256) -> ChannelState {
        let books = &self.books[&id];
        let held = self.ledger.get(id).expect("a channel");
        ChannelState {
            voucher: books.accepted,
            spent: Wei(books.charged()),
            settled: Wei(held.settled),
            deposit: Wei(held.deposit),
        }
    }

    /// Delivers as many of `tokens` as are paid for; the prompt is charged with the first.
    pub(crate) fn deliver(&mut self, id: B256, stream: u32, prompt: u32, tokens: u32) -> u32 {
        let books = self.books.get_mut(&id).expect("a channel");
        let free = books.amount().saturating_sub(books.reserved());
        let (charged, reserved) = books.streams.get_mut(&stream).expect("a stream");
        let prompt = if *charged == 0 { cost(prompt, 0) } else { 0 };
        let ahead = (*charged + prompt + cost(0, WINDOW)).max(*reserved);
        *reserved += (ahead - *reserved).min(free);
        let paid = reserved.saturating_sub(*charged + prompt) / cost(0, 1);
        let tokens = tokens.min(u32::try_from(paid).expect("few"));
        if tokens > 0 {
            *charged += prompt + cost(0, tokens);
        }
        tokens
    }

    /// What a stream needs to go on.
    pub(crate) fn need(&self, id: B256, stream: u32, prompt: u32) -> NeedVoucher {
        let books = &self.books[&id];
        let (charged, reserved) = books.streams[&stream];
        let prompt = if charged == 0 { cost(prompt, 0) } else { 0 };
        let ahead = charged + prompt + cost(0, WINDOW);
        let required = books.reserved() + ahead.saturating_sub(reserved);
        NeedVoucher {
            channel_id: id,
            required_cumulative: Wei(required),
            accepted_cumulative: Wei(books.amount()),
            deposit: Wei(self.ledger.get(id).expect("a channel").deposit),
            spent: Some(Wei(books.charged())),
            charged_tokens: None,
        }
    }

    /// Ends a request; its reservation dies with it.
    pub(crate) fn end(&mut self, id: B256, stream: u32) -> u128 {
        let books = self.books.get_mut(&id).expect("a channel");
        let (charged, _) = books.streams.remove(&stream).unwrap_or_default();
        books.spent += charged;
        charged
    }

    /// A receipt that says what the arguments say.
    pub(crate) fn receipt(&self, id: B256, tokens: Tokens, charged: u128) -> Receipt {
        let spent = self.books[&id].charged();
        let usage = Usage {
            channel_id: id,
            request_id: "request-1",
            model_hash: self.model_hash,
            input_tokens: tokens.input,
            output_tokens: tokens.output,
            charged,
            spent,
            price_version: self.price_version,
        };
        let signature = market().domain.sign_usage(&self.signer, &usage);
        Receipt {
            method: "evm".to_owned(),
            intent: "session".to_owned(),
            status: "success".to_owned(),
            timestamp: "2027-01-15T08:00:00Z".to_owned(),
            reference: id,
            challenge_id: "challenge".to_owned(),
            channel_id: id,
            accepted_cumulative: Wei(self.books[&id].amount()),
            spent: Wei(spent),
            chain_id: 1337,
            units: None,
            tx_hash: None,
            usage: Some(UsageReceipt {
                request_id: "request-1".to_owned(),
                model_hash: Some(self.model_hash),
                input_tokens: tokens.input,
                output_tokens: tokens.output,
                cached_tokens: 0,
                charged: Wei(charged),
                price_version: self.price_version,
                ttft_ms: 1,
                duration_ms: 2,
                finish: "stop".to_owned(),
                signature,
            }),
        }
    }
}
