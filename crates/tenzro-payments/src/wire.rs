//! The messages of MPP's `session` intent with the `evm` method, as they stand inside the headers.
//!
//! ```text
//! WWW-Authenticate: Payment …, request=…      SessionRequest    what is asked for
//! Authorization: Payment …                     Payload           what is given
//! event: payment-need-voucher                  NeedVoucher       more is needed to go on
//! Payment-Receipt, event: payment-receipt      Receipt           what it was used for
//! ```
//!
//! Source: MPP draft-evm-session-00. The envelope around them is the `mpp` crate's. `pricing`, `model_id`,
//! `request_auth`, `channel` and the second half of the receipt are ours; other clients skip them.

use alloy::primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize, Serializer};
use tenzro_protocol::amount::Wei;

use crate::price::{Pricing, Tokens};
use crate::signature::Signature;
use crate::voucher::{RequestAuth, Voucher};

/// The payment method's name.
pub const METHOD: &str = "evm";
/// The intent's name.
pub const INTENT: &str = "session";
/// What is priced by [`SessionRequest::amount`].
pub const UNIT: &str = "llm_token";
/// A deposit by a signed EIP-3009 authorization, which the payee submits.
pub const BY_AUTHORIZATION: &str = "authorization";
/// A deposit that the payer made itself.
pub const BY_HASH: &str = "hash";

/// What a payee asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRequest {
    /// Wei for a token of the answer; `pricing` has the rest.
    pub amount: Wei,
    /// [`UNIT`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unit_type: Option<String>,
    /// A deposit that lasts for a while.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub suggested_deposit: Option<Wei>,
    /// The token contract.
    #[serde(serialize_with = "checksummed")]
    pub currency: Address,
    /// The payee.
    #[serde(serialize_with = "checksummed")]
    pub recipient: Address,
    /// Where and how.
    pub method_details: MethodDetails,
    /// Prices in both directions; a payee without them charges `amount` for every token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pricing: Option<Pricing>,
    /// What is sold.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<ModelTerms>,
}

/// The model that the prices are for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelTerms {
    /// Its id on the network.
    pub id: String,
    /// SHA-256 of its file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hash: Option<B256>,
}

/// The escrow, and how channels there are opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MethodDetails {
    /// EIP-155 id.
    pub chain_id: u64,
    /// The escrow contract.
    #[serde(serialize_with = "checksummed")]
    pub escrow_contract: Address,
    /// A channel to go on with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub channel_id: Option<B256>,
    /// Wei by which a voucher has to exceed the one before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_voucher_delta: Option<Wei>,
    /// Whether the payee submits signed deposits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fee_payer: Option<bool>,
    /// Forms of deposits, the preferred one first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub credential_types: Option<Vec<String>>,
}

/// What a payer gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase")]
pub enum Payload {
    /// A new channel and the first voucher.
    Open(Box<Open>),
    /// More money for a channel.
    TopUp(Box<TopUp>),
    /// A higher voucher, or the one that is known already.
    Voucher(Box<VoucherUpdate>),
    /// The last voucher: settle it and give the rest back.
    Close(Box<Close>),
}

/// `action: "open"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Open {
    /// The channel, as its parameters make it.
    pub channel_id: B256,
    /// How the money gets there.
    #[serde(flatten)]
    pub deposit: OpenDeposit,
    /// Amount of the first voucher.
    pub cumulative_amount: Wei,
    /// Who signs vouchers; none means the payer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub authorized_signer: Option<Address>,
    /// Makes the channel's id a new one.
    pub salt: B256,
    /// See [`RequestAuth`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_auth: Option<RequestAuth>,
}

/// How the money of a new channel gets there, with the first voucher's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum OpenDeposit {
    /// The payee submits the authorization.
    Authorization {
        /// What the payer authorizes.
        authorization: Authorization,
        /// Of the authorization.
        signature: Signature,
        /// Of the first voucher.
        voucher_signature: Signature,
    },
    /// The payer opened the channel itself.
    Hash {
        /// The transaction that did.
        hash: B256,
        /// Of the first voucher.
        signature: Signature,
    },
}

/// An EIP-3009 `receiveWithAuthorization`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Who pays.
    pub from: Address,
    /// The escrow contract.
    pub to: Address,
    /// Wei.
    pub value: Wei,
    /// Unix seconds after which it holds.
    #[serde(with = "decimal")]
    pub valid_after: U256,
    /// Unix seconds before which it holds.
    #[serde(with = "decimal")]
    pub valid_before: U256,
    /// Made of the channel's parameters; see the draft's "Front-Running Protection".
    pub nonce: B256,
}

/// `action: "topUp"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopUp {
    /// The channel.
    pub channel_id: B256,
    /// How the money gets there.
    #[serde(flatten)]
    pub deposit: TopUpDeposit,
    /// Wei.
    pub additional_deposit: Wei,
}

/// How more money gets into a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
#[allow(clippy::large_enum_variant, reason = "boxed with what it is in")]
pub enum TopUpDeposit {
    /// The payee submits the authorization.
    Authorization {
        /// Makes the authorization's nonce a new one.
        salt: B256,
        /// What the payer authorizes.
        authorization: Authorization,
        /// Of the authorization.
        signature: Signature,
    },
    /// The payer topped up itself.
    Hash {
        /// The transaction that did.
        hash: B256,
    },
}

/// `action: "voucher"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherUpdate {
    /// The voucher.
    #[serde(flatten)]
    pub voucher: Voucher,
    /// Money that is put in before the voucher is looked at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deposit: Option<MergedDeposit>,
    /// See [`RequestAuth`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_auth: Option<RequestAuth>,
}

/// `action: "close"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Close {
    /// The last voucher.
    #[serde(flatten)]
    pub voucher: Voucher,
    /// See [`RequestAuth`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_auth: Option<RequestAuth>,
}

/// A deposit inside a voucher. Only signed ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MergedDeposit {
    /// Whether the channel is a new one.
    pub action: DepositAction,
    /// [`BY_AUTHORIZATION`].
    #[serde(rename = "type")]
    pub kind: DepositKind,
    /// What the payer authorizes.
    pub authorization: Authorization,
    /// Of the authorization.
    pub signature: Signature,
    /// Of the channel's id, or of the authorization's nonce.
    pub salt: B256,
    /// Who signs vouchers of a new channel; none means the payer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub authorized_signer: Option<Address>,
}

/// What a merged deposit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DepositAction {
    /// Opens the channel.
    Open,
    /// Adds to it.
    TopUp,
}

/// The form of a merged deposit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DepositKind {
    /// EIP-3009.
    Authorization,
}

/// Inside a stream: what has to be paid for the stream to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NeedVoucher {
    /// The channel.
    pub channel_id: B256,
    /// Amount that the next voucher has at least.
    pub required_cumulative: Wei,
    /// Amount of the highest voucher so far.
    pub accepted_cumulative: Wei,
    /// Wei in the channel: where less than is required, it has to be topped up first.
    pub deposit: Wei,
    /// Wei charged so far, over all requests of the channel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spent: Option<Wei>,
    /// Tokens that this request was charged for so far.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub charged_tokens: Option<Tokens>,
}

/// What was paid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// [`METHOD`].
    pub method: String,
    /// [`INTENT`].
    pub intent: String,
    /// `success`.
    pub status: String,
    /// RFC 3339.
    pub timestamp: String,
    /// The channel.
    pub reference: B256,
    /// The challenge that was answered.
    pub challenge_id: String,
    /// The channel.
    pub channel_id: B256,
    /// Amount of the highest voucher.
    pub accepted_cumulative: Wei,
    /// Wei charged since the channel was opened.
    pub spent: Wei,
    /// EIP-155 id.
    pub chain_id: u64,
    /// Tokens of this request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub units: Option<u64>,
    /// The settlement, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tx_hash: Option<B256>,
    /// What this request used, once it is over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub usage: Option<UsageReceipt>,
}

/// What one request used, signed by the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageReceipt {
    /// As in the header `x-request-id`.
    pub request_id: String,
    /// SHA-256 of the model file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model_hash: Option<B256>,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answers.
    pub output_tokens: u32,
    /// Tokens of the prompt that had been computed before.
    pub cached_tokens: u32,
    /// Wei for this request.
    pub charged: Wei,
    /// Price on the ledger that was charged.
    pub price_version: u64,
    /// From the request to the first token.
    pub ttft_ms: u64,
    /// From the request to its end.
    pub duration_ms: u64,
    /// Why it ended: OpenAI's `finish_reason`, `payment_required`, `cancelled` or `error`.
    pub finish: String,
    /// Of [`crate::voucher::Usage`], by the payee.
    pub signature: Signature,
}

/// Where a channel stands, for a payer that has lost its books: what it signed last comes back to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// The highest voucher; none before the first one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub voucher: Option<Voucher>,
    /// Wei charged.
    pub spent: Wei,
    /// Wei settled on the ledger.
    pub settled: Wei,
    /// Wei in the channel.
    pub deposit: Wei,
}

/// An error, as RFC 9457 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// URI of the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened.
    pub detail: String,
    /// The channel concerned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub channel_id: Option<B256>,
    /// Amount that a voucher needs at least.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub required_cumulative: Option<Wei>,
    /// Where the channel stands.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub channel: Option<ChannelState>,
}

/// Addresses of a request in mixed case (EIP-55). Source: the draft's "Hexadecimal Values".
fn checksummed<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

/// 256-bit integers as decimal strings. Source: the draft's "Numeric Values".
mod decimal {
    use alloy::primitives::U256;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        number: &U256,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<U256, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_decimal.then(|| U256::from_str_radix(&text, 10).ok());
        let wrong = || serde::de::Error::custom("expected decimal digits in a string");
        number.flatten().ok_or_else(wrong)
    }
}
