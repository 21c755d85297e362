//! `channel list|open|topup|close`: through this home's node, which then pays with the channel at once; else
//! with this home's wallet, straight on the ledger.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tenzro_ledger::channels::{ChannelRefusal, ChannelTerms};
use tenzro_ledger::{Address, B256};
use tenzro_node::NodeClient;
use tenzro_node::config::Config;
use tenzro_protocol::amount::Wei;

use super::network::{Acting, START_NODE, connect, explain_node, own_wallet};
use crate::arguments;
use crate::output::Output;
use crate::report::Failure;

/// A channel as the node tells it. Figures of the payer's books are `None` where there are none.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Channel {
    channel_id: B256,
    payer: String,
    provider: String,
    status: String,
    deposit: Wei,
    signed: Option<Wei>,
    due: Option<Wei>,
    settled: Wei,
    withdrawable_at: Option<u64>,
    refunded: Option<Wei>,
    opened_at: Option<u64>,
    /// Of the last bills that were too high, those of this provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overbills: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transaction_hash: Option<B256>,
}

/// Who acts.
enum Payer {
    /// The node of this home, with the wallet in use.
    Node(NodeClient),
    /// The wallet itself.
    Wallet(Box<Acting>),
}

pub(super) async fn run(
    config: &Config,
    command: arguments::Channel,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Channel::List => list(config, output).await,
        arguments::Channel::Open { provider, amount } => {
            check(amount)?;
            let payer = Payer::find(config, output).await?;
            let channel = payer.open(provider, amount).await?;
            let done = format!("opened a channel to {provider} with {} TNZO", amount.tnzo());
            finish(&channel, &done, output);
            Ok(())
        }
        arguments::Channel::Topup { channel, amount } => {
            check(amount)?;
            let payer = Payer::find(config, output).await?;
            let channel = payer.top_up(channel, amount).await?;
            let deposit = channel.deposit.tnzo();
            let done = format!("put {} TNZO in: {deposit} in all", amount.tnzo());
            finish(&channel, &done, output);
            Ok(())
        }
        arguments::Channel::Close { channel, force } => {
            let payer = Payer::find(config, output).await?;
            let channel = payer.close(channel, force).await?;
            let done = ending(&channel, output);
            finish(&channel, &done, output);
            Ok(())
        }
    }
}

fn check(amount: Wei) -> anyhow::Result<()> {
    if amount == Wei::ZERO {
        return Err(Failure::new("--amount: 0 is no deposit").into());
    }
    Ok(())
}

async fn list(config: &Config, output: &Output) -> anyhow::Result<()> {
    let network = connect(config).await?;
    let wallet = own_wallet(config, &network, output)?;
    let channels = channels(&network.node, wallet.address).await?;
    if output.json {
        output.json(&channels);
        return Ok(());
    }
    if channels.is_empty() {
        output.note("there is no channel: the first paid answer of a provider opens one");
        return Ok(());
    }
    let mut bills: Vec<(&String, u64)> = channels
        .iter()
        .filter_map(|channel| Some((&channel.provider, channel.overbills?)))
        .collect();
    bills.sort();
    bills.dedup();
    for (provider, count) in bills.into_iter().filter(|(_, count)| *count > 0) {
        output.warn(format!(
            "{count} bills of {provider} were too high: no more was paid than what had arrived"
        ));
    }
    let figure = |amount: Option<Wei>| amount.map_or_else(|| "-".to_owned(), Wei::tnzo);
    let rows = channels.into_iter().map(|channel| {
        let status = match channel.withdrawable_at.and_then(time) {
            Some(at) => format!("{}, withdrawable from {at}", channel.status),
            None => channel.status,
        };
        vec![
            channel.channel_id.to_string(),
            channel.provider,
            channel.deposit.tnzo(),
            figure(channel.signed),
            figure(channel.due),
            channel.settled.tnzo(),
            status,
        ]
    });
    let head = [
        "channel", "provider", "deposit", "signed", "due", "settled", "status",
    ];
    output.table(&head, rows.collect());
    Ok(())
}

async fn channels(node: &NodeClient, payer: Address) -> anyhow::Result<Vec<Channel>> {
    let params = json!([{"address": payer.to_string()}]);
    let channels = node.call("tenzro_listPaymentChannels", params).await;
    channels.map_err(explain_node)
}

impl Payer {
    /// The node of this home where it has the wallet in use.
    async fn find(config: &Config, output: &Output) -> anyhow::Result<Self> {
        let acting = Acting::start(config, output).await?;
        let network = &acting.network;
        let own = acting.address().to_string();
        if network.node.is_ours() && network.info.wallet.as_ref() == Some(&own) {
            return Ok(Self::Node(network.node.clone()));
        }
        Ok(Self::Wallet(Box::new(acting)))
    }

    async fn open(&self, provider: Address, amount: Wei) -> anyhow::Result<Channel> {
        let acting = match self {
            Self::Node(node) => {
                let params = json!([{"provider": provider.to_string(), "amount": amount}]);
                return call(node, "tenzro_openPaymentChannel", params).await;
            }
            Self::Wallet(acting) => acting,
        };
        let own = acting.address();
        if provider == own {
            return Err(Failure::new("--provider: a wallet does not pay itself").into());
        }
        let open = channels(&acting.network.node, own)
            .await?
            .into_iter()
            .find(|channel| channel.status == "open" && channel.provider.parse() == Ok(provider));
        if let Some(open) = open {
            let id = open.channel_id;
            let text = format!("there is an open channel to this provider: {id}");
            let hint = format!("tenzro-cli channel topup {id} --amount {}", amount.tnzo());
            return Err(Failure::new(text).hint(hint).into());
        }
        let terms = ChannelTerms::fresh(provider);
        let receipt = acting.operations().open_channel(&terms, amount.0).await;
        let receipt = receipt.map_err(|error| acting.explain(error))?;
        let id = terms.id(own, &acting.network.ledger.escrow());
        after(acting, id, Some(receipt.transaction_hash)).await
    }

    async fn top_up(&self, id: B256, amount: Wei) -> anyhow::Result<Channel> {
        match self {
            Self::Node(node) => {
                let params = json!([{"channel_id": id, "amount": amount}]);
                call(node, "tenzro_topUpPaymentChannel", params).await
            }
            Self::Wallet(acting) => {
                let receipt = acting.operations().top_up_channel(id, amount.0).await;
                let receipt = receipt.map_err(|error| acting.explain(error))?;
                after(acting, id, Some(receipt.transaction_hash)).await
            }
        }
    }

    async fn close(&self, id: B256, force: bool) -> anyhow::Result<Channel> {
        let acting = match self {
            Self::Node(node) => {
                let params = json!([{"channel_id": id, "force": force}]);
                return call(node, "tenzro_closePaymentChannel", params).await;
            }
            Self::Wallet(acting) => acting,
        };
        let channel = after(acting, id, None).await?;
        if channel.status == "closed" {
            return Ok(channel);
        }
        if !force {
            let text = "the last voucher for the provider is signed by this home's node, which does not run";
            let hint = format!("{START_NODE}; or close it without the provider: --force");
            return Err(Failure::new(text).hint(hint).into());
        }
        let operations = acting.operations();
        let receipt = if channel.withdrawable_at.is_none() {
            operations.request_channel_close(id).await
        } else {
            match operations.withdraw_channel(id).await {
                Err(error) if error.channel_refusal() == Some(ChannelRefusal::CloseNotReady) => {
                    return Ok(channel);
                }
                other => other,
            }
        };
        let receipt = receipt.map_err(|error| acting.explain(error))?;
        after(acting, id, Some(receipt.transaction_hash)).await
    }
}

async fn call(
    node: &NodeClient,
    method: &str,
    params: serde_json::Value,
) -> anyhow::Result<Channel> {
    node.call(method, params).await.map_err(explain_node)
}

/// The channel as the ledger has it after a transaction.
async fn after(acting: &Acting, id: B256, transaction: Option<B256>) -> anyhow::Result<Channel> {
    let all = channels(&acting.network.node, acting.address()).await?;
    let found = all.into_iter().find(|channel| channel.channel_id == id);
    let none =
        || Failure::new(format!("this wallet has no channel {id}")).hint("tenzro-cli channel list");
    Ok(Channel {
        transaction_hash: transaction,
        ..found.ok_or_else(none)?
    })
}

/// What closing has come to.
fn ending(channel: &Channel, output: &Output) -> String {
    if let Some(refunded) = channel.refunded {
        let (back, paid) = (refunded.tnzo(), channel.settled.tnzo());
        return format!("closed: {back} TNZO are back in the wallet, {paid} were paid");
    }
    let from = channel.withdrawable_at.and_then(time);
    let from = from.map_or_else(
        || "the grace period is over".to_owned(),
        |at| at.to_string(),
    );
    if !output.json {
        output.hint(format!(
            "then: tenzro-cli channel close {} --force",
            channel.channel_id
        ));
    }
    format!("closing: what is left can be taken back from {from}")
}

fn time(seconds: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

fn finish(channel: &Channel, done: &str, output: &Output) {
    if output.json {
        return output.json(channel);
    }
    output.line(done);
    output.note(format!("channel {}", channel.channel_id));
    if let Some(hash) = channel.transaction_hash {
        output.note(format!("transaction {hash}"));
    }
}
