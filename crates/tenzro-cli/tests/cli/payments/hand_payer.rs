//! A payer made by hand: it signs whatever a test wants and sends it to a real model server.

use mpp::PaymentChallenge;
use mpp::protocol::core::{PaymentCredential, format_authorization, parse_www_authenticate};
use tenzro_ledger::channels::{ChannelTerms, Escrow, OpenRequest};
use tenzro_ledger::{Address, B256, PrivateKeySigner, U256};
use tenzro_payments::signature::{Signature, Signer};
use tenzro_payments::voucher::{Domain, Voucher, request_hash};
use tenzro_payments::wire::{Authorization, Close, Open, OpenDeposit, Payload, VoucherUpdate};
use tenzro_protocol::amount::Wei;

use super::http::{Answer, post};
use super::market::{Market, Serving};

/// A channel of the consumer's wallet that its node knows nothing of.
#[derive(Debug)]
pub(super) struct HandPayer {
    signer: Signer,
    domain: Domain,
    /// The same key, for deposits.
    wallet: PrivateKeySigner,
    escrow: Escrow,
    terms: ChannelTerms,
    /// Ends in `/v1`.
    url: String,
}

impl HandPayer {
    /// `salt` makes the channel another one.
    pub(super) fn new(market: &Market, serving: &Serving, salt: u8) -> Self {
        let escrow = market.ledger.escrow();
        Self {
            signer: signer(&market.payer.to_bytes()),
            domain: Domain::new(escrow.chain_id, escrow.address),
            wallet: market.payer.clone(),
            escrow,
            terms: ChannelTerms {
                payee: market.payee.address(),
                salt: B256::repeat_byte(salt),
                authorized_signer: Address::ZERO,
            },
            url: serving.url.clone(),
        }
    }

    pub(super) fn id(&self) -> B256 {
        self.terms.id(self.wallet.address(), &self.escrow)
    }

    /// Asks without a payment.
    pub(super) fn challenge(&self) -> PaymentChallenge {
        let answer = post(&format!("{}/chat/completions", self.url), &[], "{}");
        assert_eq!(answer.status, 402);
        parse_www_authenticate(answer.header("www-authenticate").expect("a challenge"))
            .expect("read")
    }

    /// Wei for a token of the answer that the server asks for now.
    pub(super) fn price(&self) -> u128 {
        let request = self.challenge().request.decode_value().expect("JSON");
        request["amount"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("wei")
    }

    /// Opens the channel with a first voucher and a request.
    pub(super) fn open(&self, deposit: u128, amount: u128, body: &str) -> Answer {
        let far = 4_000_000_000;
        let signed = OpenRequest::sign(&self.wallet, &self.escrow, self.terms, deposit, far);
        let signed = signed.authorization;
        let authorization = Authorization {
            from: signed.from,
            to: self.escrow.address,
            value: Wei(signed.value),
            valid_after: U256::from(signed.valid_after),
            valid_before: U256::from(signed.valid_before),
            nonce: signed.nonce,
        };
        let payload = Payload::Open(Box::new(Open {
            channel_id: self.id(),
            deposit: OpenDeposit::Authorization {
                authorization,
                signature: Signature(signed.signature),
                voucher_signature: self.voucher(self.id(), amount).signature,
            },
            cumulative_amount: Wei(amount),
            authorized_signer: None,
            salt: self.terms.salt,
            request_auth: None,
        }));
        self.send(&self.credential(&payload), body)
    }

    /// A voucher that is bound to nothing, as a credential.
    pub(super) fn paying(&self, amount: u128) -> String {
        self.credential(&Payload::Voucher(Box::new(VoucherUpdate {
            voucher: self.voucher(self.id(), amount),
            deposit: None,
            request_auth: None,
        })))
    }

    /// A voucher that is bound to one chat.
    pub(super) fn paying_for(&self, amount: u128, body: &str, nonce: u8) -> String {
        let challenge = self.challenge();
        let hash = request_hash("POST", "/v1/chat/completions", body.as_bytes());
        let nonce = B256::repeat_byte(nonce);
        let auth = self
            .domain
            .sign_request(&self.signer, self.id(), &challenge.id, hash, nonce);
        let payload = Payload::Voucher(Box::new(VoucherUpdate {
            voucher: self.voucher(self.id(), amount),
            deposit: None,
            request_auth: Some(auth),
        }));
        credential(&challenge, &payload)
    }

    /// Sends a chat with a credential.
    pub(super) fn send(&self, credential: &str, body: &str) -> Answer {
        self.send_to("chat/completions", credential, body)
    }

    /// Sends a body with a credential to a path below `/v1`.
    pub(super) fn send_to(&self, path: &str, credential: &str, body: &str) -> Answer {
        post(
            &format!("{}/{path}", self.url),
            &[("authorization", credential)],
            body,
        )
    }

    /// Sends a voucher alone.
    pub(super) fn pay(&self, amount: u128) -> Answer {
        let credential = self.paying(amount);
        post(
            &format!("{}/payments/voucher", self.url),
            &[("authorization", &credential)],
            "",
        )
    }

    /// Has a channel closed with a last voucher: cooperatively, through its payee.
    pub(super) fn close(&self, channel: B256, amount: u128) -> Answer {
        let challenge = self.challenge();
        let hash = request_hash("POST", "/v1/payments/voucher", b"");
        // As random as a challenge and an amount, which come once.
        let nonce = request_hash(&challenge.id, &amount.to_string(), channel.as_slice());
        let auth = self
            .domain
            .sign_request(&self.signer, channel, &challenge.id, hash, nonce);
        let payload = Payload::Close(Box::new(Close {
            voucher: self.voucher(channel, amount),
            request_auth: Some(auth),
        }));
        let credential = credential(&challenge, &payload);
        post(
            &format!("{}/payments/voucher", self.url),
            &[("authorization", &credential)],
            "",
        )
    }

    fn voucher(&self, channel: B256, amount: u128) -> Voucher {
        self.domain.sign_voucher(&self.signer, channel, amount)
    }

    fn credential(&self, payload: &Payload) -> String {
        credential(&self.challenge(), payload)
    }
}

pub(super) fn signer(key: &B256) -> Signer {
    Signer::from_bytes(key).expect("a key")
}

fn credential(challenge: &PaymentChallenge, payload: &Payload) -> String {
    let credential = PaymentCredential::new(challenge.to_echo(), payload);
    format_authorization(&credential).expect("a header")
}
