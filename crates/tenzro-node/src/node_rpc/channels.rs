//! Payment channels of a wallet: as the ledger has them and the payer's books know them, and what their payer
//! can do with them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tenzro_api::Caller;
use tenzro_ledger::channels::{Channel, ChannelRefusal, ChannelTerms, Funding, Party};
use tenzro_ledger::{Address, B256, Operations};
use tenzro_payments::payer::{self, ChannelState, PayError, Payer};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::json_rpc::{RpcError, code};
use tenzro_protocol::network::EndpointInfo;

use super::params::{AddressParam, CloseParam, DepositParam, read, required};
use super::writes::{extend, from_send, sent};
use super::{NodeRpc, from_ledger, internal};
use crate::channel_view::ViewedChannel;
use crate::closing::{self, Seller};

/// How often, and how long each time, the ledger is asked whether a provider closed a channel that it says it
/// closed.
const CLOSED: (u32, Duration) = (5, Duration::from_secs(1));

/// Bills that were too high are counted among so many.
const EVIDENCE_MAX: u32 = 100;

/// What the payer's books know, by id.
type Known = HashMap<B256, payer::Channel>;

impl NodeRpc {
    /// Those of one payer, the newest first.
    pub(super) async fn list_channels(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let AddressParam { address, .. } = read(params, &["address"])?;
        let payer = address.map_or_else(|| self.own_address(), Ok)?;
        let found = self.channels.of(Party::Payer(payer)).await;
        let found = found.map_err(from_ledger)?;
        let mut known = self.known(caller, payer).await?;
        let overbills = self.overbills(caller, payer).await?;
        let mut rows: Vec<(u64, Value)> = found
            .iter()
            .map(|(id, channel)| {
                let mut value = channel_value(*id, channel, known.remove(id).as_ref());
                let count = overbills.as_ref().map(|all| {
                    let of = all.iter().filter(|payee| **payee == channel.payee);
                    of.count()
                });
                extend(&mut value, json!({"overbills": count}));
                (channel.opened_at, value)
            })
            .collect();
        // Before all others: their deposit is on its way.
        let opening = known
            .values()
            .filter(|one| one.state == ChannelState::Opening);
        rows.extend(opening.map(|one| (u64::MAX, opening_value(payer, one))));
        rows.sort_by_key(|(opened_at, _)| std::cmp::Reverse(*opened_at));
        Ok(rows.into_iter().map(|(_, value)| value).collect())
    }

    pub(super) async fn open_channel(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: DepositParam = read(params, &["provider", "amount"])?;
        if let Some(receipt) = self.submit_all(&param.signed_transactions).await? {
            return self.funded(caller, receipt.transaction_hash).await;
        }
        let operations = self.operations(caller)?;
        let provider = required(param.provider, "provider")?;
        let amount = param.amount()?;
        let own = operations.account.address();
        if provider == own {
            return Err(RpcError::invalid_params(
                "provider: the node's own wallet does not pay itself",
            ));
        }
        if let Some(id) = self.open_channel_to(provider, own).await? {
            let message = format!("there is an open channel to this provider: {id}");
            return Err(RpcError::new(code::TRANSACTION, message)
                .hint("put more into it: tenzro_topUpPaymentChannel, tenzro-cli channel topup"));
        }
        let terms = ChannelTerms::fresh(provider);
        let receipt = sent(operations.open_channel(&terms, amount.0).await)?;
        self.recover().await;
        let id = terms.id(own, &self.ledger.escrow());
        self.answer(caller, id, own, Some(receipt.transaction_hash))
            .await
    }

    /// A channel from the node's wallet that takes payments, or is about to: its deposit is signed.
    async fn open_channel_to(
        &self,
        provider: Address,
        own: Address,
    ) -> Result<Option<B256>, RpcError> {
        let all = self.channels.of(Party::Payer(own)).await;
        let all = all.map_err(from_ledger)?;
        let open = all
            .iter()
            .find(|(_, channel)| channel.payee == provider && channel.is_open());
        if let Some((id, _)) = open {
            return Ok(Some(*id));
        }
        let Some(books) = &self.payer else {
            return Ok(None);
        };
        let known = books.channels().await.map_err(internal)?;
        let opening = known
            .iter()
            .find(|one| one.payee == provider && one.state == ChannelState::Opening);
        Ok(opening.map(|one| one.id))
    }

    pub(super) async fn top_up_channel(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: DepositParam = read(params, &["channel_id", "amount"])?;
        if let Some(receipt) = self.submit_all(&param.signed_transactions).await? {
            return self.funded(caller, receipt.transaction_hash).await;
        }
        let operations = self.operations(caller)?;
        let id = required(param.channel_id, "channel_id")?;
        let amount = param.amount()?;
        let channel = self.own_channel(operations, id).await?;
        let receipt = sent(operations.top_up_channel(id, amount.0).await)?;
        self.recover().await;
        self.answer(caller, id, channel.payer, Some(receipt.transaction_hash))
            .await
    }

    /// With the provider, which settles what is due and gives the rest back; with `force` without it: asks for
    /// closing, and after the grace period takes the rest back.
    pub(super) async fn close_channel(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: CloseParam = read(params, &["channel_id", "force"])?;
        let id = required(param.channel_id, "channel_id")?;
        if let Some(receipt) = self.submit_all(&param.signed_transactions).await? {
            let hash = receipt.transaction_hash;
            return self.answer(caller, id, receipt.from, Some(hash)).await;
        }
        let operations = self.operations(caller)?;
        let channel = self.own_channel(operations, id).await?;
        let transaction = match (channel.finalized, param.force) {
            (true, _) => None,
            (false, true) => self.leave(operations, &channel).await?,
            (false, false) => {
                let closed = self.close_with_provider(&channel).await;
                // Where it is not closed, the books take it up again.
                self.recover().await;
                closed?;
                None
            }
        };
        if transaction.is_some() {
            self.recover().await;
        }
        self.answer(caller, id, channel.payer, transaction).await
    }

    /// The next step without the provider; `None` while the grace period runs.
    async fn leave(
        &self,
        operations: Operations<'_>,
        channel: &Channel,
    ) -> Result<Option<B256>, RpcError> {
        if channel.close_requested_at == 0 {
            let receipt = sent(operations.request_channel_close(channel.id).await)?;
            return Ok(Some(receipt.transaction_hash));
        }
        match operations.withdraw_channel(channel.id).await {
            Ok(receipt) => Ok(Some(receipt.transaction_hash)),
            Err(error) if error.channel_refusal() == Some(ChannelRefusal::CloseNotReady) => {
                Ok(None)
            }
            Err(error) => Err(from_send(&error)),
        }
    }

    async fn close_with_provider(&self, channel: &Channel) -> Result<(), RpcError> {
        let payer = self.payer.as_ref();
        let payer = payer.ok_or_else(|| RpcError::new(code::SERVER, "this node has no wallet"))?;
        // Channels that were opened a moment ago have to be in the books.
        self.recover().await;
        let sellers = self.sellers(channel.payee);
        let mut reason = "it has no endpoint on the ledger".to_owned();
        for seller in sellers {
            match closing::ask(&self.prober, &seller, payer, channel.id).await {
                Ok(Ok(())) => {
                    if self.is_closed(channel.id, CLOSED.0).await? {
                        return Ok(());
                    }
                    "it says that it closed it, but on the ledger it is open"
                        .clone_into(&mut reason);
                }
                Ok(Err(error)) => return Err(not_closed(&error)),
                Err(error) => {
                    // It may have sent its transaction before it broke off.
                    if self.is_closed(channel.id, 1).await? {
                        return Ok(());
                    }
                    reason = error.to_string();
                }
            }
        }
        let message = format!("the provider did not close the channel: {reason}");
        Err(RpcError::new(code::ENDPOINT, message).hint(
            "tenzro-cli channel close CHANNEL --force (the parameter force) closes it without the provider, \
             after the ledger's grace period",
        ))
    }

    /// The ledger's word. It may lag behind the provider's.
    async fn is_closed(&self, id: B256, times: u32) -> Result<bool, RpcError> {
        for time in 0..times {
            if time > 0 {
                tokio::time::sleep(CLOSED.1).await;
            }
            let channel = self.ledger.channel_now(id).await.map_err(from_ledger)?;
            if channel.is_some_and(|channel| channel.finalized) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a provider can be asked.
    fn sellers(&self, payee: Address) -> Vec<Seller> {
        let endpoints = self.with_directory(|directory| directory.endpoints_of(payee));
        let seller = |endpoint: EndpointInfo| Seller {
            base_url: endpoint.api_endpoint,
            model: endpoint.model_id,
            payee,
        };
        endpoints.into_iter().map(seller).collect()
    }

    /// A channel that the node's wallet pays through.
    async fn own_channel(&self, operations: Operations<'_>, id: B256) -> Result<Channel, RpcError> {
        let found = self.ledger.channel_now(id).await.map_err(from_ledger)?;
        let missing = || RpcError::new(code::NOT_FOUND, format!("there is no channel {id}"));
        let channel = found.ok_or_else(missing)?;
        if channel.payer != operations.account.address() {
            let message = format!(
                "channel_id: that channel is of another payer, {}",
                channel.payer
            );
            return Err(RpcError::invalid_params(message));
        }
        Ok(channel)
    }

    /// The payer's books take in what the ledger says now; without it, a minute later.
    async fn recover(&self) {
        if let Some(payer) = &self.payer
            && let Err(error) = payer.recover().await
        {
            tracing::warn!(%error, "the payer's books cannot be held against the ledger");
        }
    }

    /// The channel that a transaction paid into.
    async fn funded(&self, caller: Caller, transaction: B256) -> Result<Value, RpcError> {
        let funding = self
            .ledger
            .funding(transaction)
            .await
            .map_err(from_ledger)?;
        let events = match funding {
            Funding::Mined { events, .. } => events,
            Funding::NotMined | Funding::Failed => Vec::new(),
        };
        match events.last() {
            Some(event) => {
                self.answer(caller, event.id, event.payer, Some(transaction))
                    .await
            }
            None => {
                let message = "signed_transactions: they were mined, but paid into no channel";
                Err(RpcError::new(code::TRANSACTION, message))
            }
        }
    }

    /// A channel as it is now, and the transaction that made it so.
    async fn answer(
        &self,
        caller: Caller,
        id: B256,
        payer: Address,
        transaction: Option<B256>,
    ) -> Result<Value, RpcError> {
        let found = self.channels.of(Party::Payer(payer)).await;
        let found = found.map_err(from_ledger)?;
        let missing = || RpcError::new(code::NOT_FOUND, format!("{payer} has no channel {id}"));
        let channel = found.get(&id).ok_or_else(missing)?;
        let known = self.known(caller, payer).await?;
        let mut value = channel_value(id, channel, known.get(&id));
        extend(&mut value, json!({"transaction_hash": transaction}));
        Ok(value)
    }

    /// The books of the node's own wallet: for those who may spend its money.
    fn books(&self, caller: Caller, payer: Address) -> Option<&Payer> {
        let is_own = self
            .account
            .as_ref()
            .is_some_and(|account| account.address() == payer);
        let books = self.payer.as_ref();
        books.filter(|_| is_own && self.may_spend(caller))
    }

    /// Who sent the last bills that were too high, once for each; `None` where that is nobody's business.
    async fn overbills(
        &self,
        caller: Caller,
        payer: Address,
    ) -> Result<Option<Vec<Address>>, RpcError> {
        let Some(books) = self.books(caller, payer) else {
            return Ok(None);
        };
        let evidence = books.evidence(EVIDENCE_MAX).await.map_err(internal)?;
        Ok(Some(evidence.into_iter().map(|one| one.payee).collect()))
    }

    /// What the books know of the node's own channels.
    async fn known(&self, caller: Caller, payer: Address) -> Result<Known, RpcError> {
        let Some(books) = self.books(caller, payer) else {
            return Ok(Known::new());
        };
        let channels = books.channels().await.map_err(internal)?;
        Ok(channels
            .into_iter()
            .map(|channel| (channel.id, channel))
            .collect())
    }
}

fn channel_value(id: B256, channel: &ViewedChannel, known: Option<&payer::Channel>) -> Value {
    let is_closing = known.is_some_and(|known| known.state == ChannelState::Closing);
    let status = match channel.refunded {
        Some(_) => "closed",
        None if is_closing || !channel.is_open() => "closing",
        None => "open",
    };
    json!({
        "channel_id": id,
        "payer": channel.payer.to_string(),
        "provider": channel.payee.to_string(),
        "status": status,
        "deposit": Wei(channel.deposit),
        "signed": known.map(|known| Wei(known.signed)),
        "due": known.map(|known| Wei(known.due)),
        "settled": Wei(channel.settled),
        "withdrawable_at": channel.withdrawable_at,
        "refunded": channel.refunded.map(Wei),
        "opened_at": channel.opened_at,
    })
}

/// A channel whose deposit was signed and is not on the ledger yet.
fn opening_value(payer: Address, known: &payer::Channel) -> Value {
    json!({
        "channel_id": known.id,
        "payer": payer.to_string(),
        "provider": known.payee.to_string(),
        "status": "opening",
        "deposit": Wei(known.deposit),
        "signed": Wei(known.signed),
        "due": Wei(known.due),
        "settled": Wei::ZERO,
        "withdrawable_at": null,
        "refunded": null,
        "opened_at": null,
    })
}

fn not_closed(error: &PayError) -> RpcError {
    match error {
        PayError::Busy | PayError::NoChannel => RpcError::new(code::SERVER, error.to_string()),
        error => internal(error),
    }
}
