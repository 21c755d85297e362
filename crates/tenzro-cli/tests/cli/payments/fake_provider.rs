//! A provider made by hand: on the ledger like any other, it speaks the wire and cheats as it is told.
//!
//! It submits deposits for real and keeps the highest voucher, so that what it was given is what it can take.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use mpp::PaymentChallenge;
use mpp::protocol::core::{Base64UrlJson, parse_authorization};
use serde_json::{Value, json};
use tenzro_ledger::channels::{Authorization, ChannelTerms, OpenRequest, Settlement};
use tenzro_ledger::{
    Account, Address, B256, Ledger, Offer, Operations, PrivateKeySigner, SendError,
};
use tenzro_payments::signature::Signer;
use tenzro_payments::voucher::{Domain, Usage, Voucher};
use tenzro_payments::wire::{Open, OpenDeposit, Payload};
use tokio::runtime::Handle;

use super::hand_payer::signer;
use super::market::{INPUT, MODEL, Market, OUTPUT, TNZO, WINDOW, cost};

/// Tokens of every prompt here.
pub(super) const PROMPT: u128 = 3;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trick {
    Honest,
    /// Asks for twice the price on the ledger.
    Dearer,
    /// Names somebody else as the payee.
    OtherPayee,
    /// Puts 30 % more tokens on the bill.
    Overbill,
    /// Asks for a thousand windows after ten tokens.
    Demand,
    /// Ends the connection after five tokens.
    BreakOff,
    /// Says nothing more after five tokens.
    FallSilent,
}

/// What it has.
#[derive(Debug)]
pub(super) struct Till {
    pub(super) trick: Trick,
    /// The highest voucher.
    pub(super) voucher: Option<Voucher>,
    /// The one before.
    pub(super) stale: Option<Voucher>,
    /// Wei that it has a right to.
    pub(super) earned: u128,
    /// Requests that brought a payment.
    pub(super) paid_requests: u32,
    /// Streams that the payer ended.
    pub(super) ended: u32,
}

#[derive(Debug)]
struct Inner {
    till: Mutex<Till>,
    changed: Condvar,
    signer: Signer,
    key: PrivateKeySigner,
    ledger: Ledger,
    handle: Handle,
}

/// Serves until the test ends.
#[derive(Debug, Clone)]
pub(super) struct FakeProvider(Arc<Inner>);

impl FakeProvider {
    /// Registers with the provider's wallet of the market, and serves.
    pub(super) fn start(market: &Market) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let till = Till {
            trick: Trick::Honest,
            voucher: None,
            stale: None,
            earned: 0,
            paid_requests: 0,
            ended: 0,
        };
        let fake = Self(Arc::new(Inner {
            till: Mutex::new(till),
            changed: Condvar::new(),
            signer: signer(&market.payee.to_bytes()),
            key: market.payee.clone(),
            ledger: market.ledger.clone(),
            handle: market.runtime.handle().clone(),
        }));
        let offer = Offer {
            model_id: MODEL.to_owned(),
            model_hash: B256::ZERO,
            base_url: format!("http://{}/v1", listener.local_addr().expect("bound")),
            meta: "{}".to_owned(),
            price: None,
        };
        let serving = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (fake, stream) = (serving.clone(), stream.expect("a connection"));
                // Whoever leaves early breaks the pipe.
                std::thread::spawn(move || fake.answer(stream));
            }
        });
        let served = fake.on_ledger(async |operations| operations.serve_model(&offer).await);
        served.expect("registered");
        market.wait_for_endpoint();
        fake
    }

    pub(super) fn till(&self) -> MutexGuard<'_, Till> {
        self.0.till.lock().expect("unpoisoned")
    }

    /// Wei of the highest voucher.
    pub(super) fn paid(&self) -> u128 {
        self.till().paid()
    }

    /// Takes on the ledger what a voucher is worth there.
    pub(super) fn settle(&self, voucher: &Voucher) -> Result<(), SendError> {
        let row = Settlement {
            channel_id: voucher.channel_id,
            cumulative: voucher.amount.0,
            signature: voucher.signature.0.into(),
        };
        let settled = self.on_ledger(async |operations| operations.settle_channel(&row).await);
        settled.map(drop)
    }

    fn on_ledger<T>(&self, act: impl AsyncFnOnce(Operations<'_>) -> T) -> T {
        let Inner {
            ledger,
            key,
            handle,
            ..
        } = &*self.0;
        let account = Account::new(ledger.provider().clone(), ledger.chain_id(), key.clone());
        let operations = Operations {
            ledger,
            account: &account,
        };
        handle.block_on(act(operations))
    }

    fn domain(&self) -> Domain {
        let escrow = self.0.ledger.escrow();
        Domain::new(escrow.chain_id, escrow.address)
    }

    /// One request on a connection of its own.
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut first, mut length, mut payment) = (String::new(), 0, None);
        reader.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap_or(0);
                }
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    payment = Some(value.to_owned());
                }
                Some(_) => {}
                None => break,
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        let mut answer = Stream(stream);
        if first.starts_with("GET") {
            let list = json!({"object": "list", "data": [
                {"id": MODEL, "object": "model", "created": 0, "owned_by": "fake"},
            ]});
            return answer.whole("200 OK", "", &list);
        }
        let trick = self.till().trick;
        let is_refused = matches!(trick, Trick::Dearer | Trick::OtherPayee);
        match payment {
            Some(payment) => self.take(&payment),
            None => return self.challenge(&mut answer),
        }
        if first.contains("/payments/voucher") {
            return answer.whole("200 OK", "", &json!({}));
        }
        self.till().paid_requests += 1;
        if is_refused {
            return self.challenge(&mut answer);
        }
        self.stream(answer, trick)
    }

    fn challenge(&self, answer: &mut Stream) -> std::io::Result<()> {
        let escrow = self.0.ledger.escrow();
        let trick = self.till().trick;
        let price = if trick == Trick::Dearer {
            2 * OUTPUT
        } else {
            OUTPUT
        };
        let payee = match trick {
            Trick::OtherPayee => Address::repeat_byte(7),
            _ => self.0.key.address(),
        };
        let request = json!({
            "amount": price.to_string(), "unitType": "llm_token",
            "suggestedDeposit": TNZO.to_string(), "currency": escrow.token, "recipient": payee,
            "methodDetails": {
                "chainId": escrow.chain_id, "escrowContract": escrow.address,
                "feePayer": true, "credentialTypes": ["authorization"],
            },
            "pricing": {
                "inputPerToken": INPUT.to_string(), "outputPerToken": price.to_string(),
                "priceVersion": 1, "windowTokens": WINDOW,
            },
        });
        let request = Base64UrlJson::from_value(&request).expect("JSON");
        let challenge = PaymentChallenge::new("any", "fake", "evm", "session", request);
        let header = challenge.to_header().expect("a header");
        let header = format!("www-authenticate: {header}\r\n");
        answer.whole("402 Payment Required", &header, &json!({"status": 402}))
    }

    /// Takes a payment in as an honest provider would.
    fn take(&self, payment: &str) {
        let credential = parse_authorization(payment).expect("a credential");
        let payload = serde_json::from_value(credential.payload).expect("a payload");
        let voucher = match payload {
            Payload::Open(open) => self.open(&open),
            Payload::Voucher(update) => update.voucher,
            other => panic!("{other:?}"),
        };
        let mut till = self.till();
        if voucher.amount.0 > till.paid() {
            till.stale = till.voucher.replace(voucher);
        }
        self.0.changed.notify_all();
    }

    fn open(&self, open: &Open) -> Voucher {
        let OpenDeposit::Authorization {
            authorization,
            signature,
            voucher_signature,
        } = &open.deposit
        else {
            panic!("{open:?}");
        };
        let request = OpenRequest {
            terms: ChannelTerms {
                payee: self.0.key.address(),
                salt: open.salt,
                authorized_signer: Address::ZERO,
            },
            authorization: Authorization {
                from: authorization.from,
                value: authorization.value.0,
                valid_after: authorization.valid_after.to(),
                valid_before: authorization.valid_before.to(),
                nonce: authorization.nonce,
                signature: signature.0,
            },
        };
        let opened = async |operations: Operations<'_>| {
            operations.open_channel_with_authorization(&request).await
        };
        self.on_ledger(opened).expect("opened");
        Voucher {
            channel_id: open.channel_id,
            amount: open.cumulative_amount,
            signature: *voucher_signature,
        }
    }

    /// Streams "a" after "a", each a token of one byte, as far as they are paid for.
    fn stream(&self, mut answer: Stream, trick: Trick) -> std::io::Result<()> {
        let before = self.till().earned;
        let tokens = match trick {
            Trick::BreakOff | Trick::FallSilent => 5,
            Trick::Demand => 10,
            _ => 100,
        };
        answer.head("200 OK", "content-type: text/event-stream\r\n")?;
        for token in 1..=tokens {
            if !self.wait_for(&mut answer, before, cost(PROMPT, token))? {
                return Ok(());
            }
            answer.event("", &chunk("a", Value::Null))?;
            self.till().earned = before + cost(PROMPT, token);
        }
        match trick {
            Trick::BreakOff => return Ok(()),
            Trick::FallSilent => return self.wait_for_end(answer),
            Trick::Demand => {
                let required = before + cost(PROMPT, tokens + 1_000 * WINDOW);
                self.demand(&mut answer, required)?;
                return self.wait_for_end(answer);
            }
            _ => {}
        }
        let billed = if trick == Trick::Overbill { 130 } else { 100 };
        answer.event("", &chunk("", json!("length")))?;
        answer.event("", &json!({
            "id": "c", "object": "text_completion", "created": 0, "model": MODEL, "choices": [],
            "usage": {
                "prompt_tokens": PROMPT, "completion_tokens": billed, "total_tokens": PROMPT + billed,
            },
        }))?;
        answer.event("payment-receipt", &self.receipt(before, billed))?;
        answer.0.write_all(b"data: [DONE]\n\n")
    }

    /// Waits until so much is paid beyond `before`, and asks for a window more where it is not. False where
    /// nobody pays.
    fn wait_for(&self, answer: &mut Stream, before: u128, due: u128) -> std::io::Result<bool> {
        if self.paid() >= before + due {
            return Ok(true);
        }
        self.demand(answer, before + due + (WINDOW - 1) * OUTPUT)?;
        let patience = Duration::from_secs(10);
        let is_short = |till: &mut Till| till.paid() < before + due;
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.till(), patience, is_short);
        Ok(!waited.expect("unpoisoned").1.timed_out())
    }

    fn demand(&self, answer: &mut Stream, required: u128) -> std::io::Result<()> {
        let need = {
            let till = self.till();
            json!({
                "channelId": till.voucher.expect("a voucher").channel_id,
                "requiredCumulative": required.to_string(),
                "acceptedCumulative": till.paid().to_string(), "deposit": TNZO.to_string(),
            })
        };
        answer.event("payment-need-voucher", &need)
    }

    /// Until the payer has left.
    fn wait_for_end(&self, answer: Stream) -> std::io::Result<()> {
        let Stream(mut stream) = answer;
        let read = stream.read_to_end(&mut Vec::new());
        self.till().ended += 1;
        read.map(drop)
    }

    fn receipt(&self, before: u128, billed: u128) -> Value {
        let till = self.till();
        let channel_id = till.voucher.expect("a voucher").channel_id;
        let tokens = |number: u128| u32::try_from(number).expect("few");
        let charged = cost(PROMPT, billed);
        let usage = Usage {
            channel_id,
            request_id: "r",
            model_hash: B256::ZERO,
            input_tokens: tokens(PROMPT),
            output_tokens: tokens(billed),
            charged,
            spent: before + charged,
            price_version: 1,
        };
        json!({
            "method": "evm", "intent": "session", "status": "success",
            "timestamp": "2026-01-01T00:00:00Z", "reference": channel_id, "challengeId": "any",
            "channelId": channel_id, "acceptedCumulative": till.paid().to_string(),
            "spent": (before + charged).to_string(), "chainId": self.domain().chain_id,
            "usage": {
                "requestId": "r", "inputTokens": PROMPT, "outputTokens": billed, "cachedTokens": 0,
                "charged": charged.to_string(), "priceVersion": 1, "ttftMs": 1, "durationMs": 2,
                "finish": "length", "signature": self.domain().sign_usage(&self.0.signer, &usage),
            },
        })
    }
}

impl Till {
    fn paid(&self) -> u128 {
        self.voucher.map_or(0, |voucher| voucher.amount.0)
    }
}

struct Stream(TcpStream);

impl Stream {
    fn head(&mut self, status: &str, headers: &str) -> std::io::Result<()> {
        write!(
            self.0,
            "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n"
        )
    }

    fn whole(&mut self, status: &str, headers: &str, body: &Value) -> std::io::Result<()> {
        self.head(
            status,
            &format!("content-type: application/json\r\n{headers}"),
        )?;
        write!(self.0, "{body}")
    }

    fn event(&mut self, name: &str, data: &Value) -> std::io::Result<()> {
        if !name.is_empty() {
            writeln!(self.0, "event: {name}")?;
        }
        write!(self.0, "data: {data}\n\n")
    }
}

fn chunk(text: &str, finish: Value) -> Value {
    json!({
        "id": "c", "object": "text_completion", "created": 0, "model": MODEL,
        "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}],
    })
}
