//! The JSON-RPC methods of the chain: which there are and what they take.

use std::sync::PoisonError;
use std::sync::mpsc::TrySendError;
use std::time::Instant;

use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::primitives::{Address, B256, Bytes, U64, U256, keccak256};
use alloy::rpc::types::{Filter, TransactionRequest};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use tokio::sync::oneshot;

use super::error::RpcError;
use super::execute::Call;
use super::filters::{Filters, Kind};
use super::genesis::CHAIN_ID;
use super::logs::Wanted;
use super::params::{Params, quantity};
use super::readers::View;
use super::view::transaction_of;
use super::writer::{Change, Job, MINE_MAX};
use super::{EmbeddedChain, raw, store};

/// Blocks that a block filter shows at once.
const FILTER_BLOCKS_MAX: u64 = 10_000;

type Answer = Result<Box<RawValue>, RpcError>;

impl EmbeddedChain {
    pub(super) async fn answer(&self, method: &str, params: Option<&RawValue>) -> Answer {
        let mut params = Params::new(params)?;
        let p = &mut params;
        match method {
            "eth_chainId" => reply(&U64::from(CHAIN_ID)),
            "net_version" => reply(&CHAIN_ID.to_string()),
            "net_listening" => reply(&true),
            "web3_clientVersion" => reply(&CLIENT_VERSION),
            "web3_sha3" => reply(&keccak256(p.next::<Bytes>("data")?)),
            "eth_syncing" => reply(&false),
            "eth_accounts" => reply(&[(); 0]),
            "eth_gasPrice" | "eth_maxPriorityFeePerGas" => reply(&U64::ZERO),
            "eth_blockNumber" => self.read(|view| reply(&U64::from(view.head.number))).await,
            "eth_getBalance" | "eth_getTransactionCount" | "eth_getCode" | "eth_getStorageAt" => {
                self.account(method, params).await
            }
            "eth_call" | "eth_estimateGas" => self.call(method, params).await,
            "eth_getBlockByNumber"
            | "eth_getBlockByHash"
            | "eth_getBlockTransactionCountByNumber"
            | "eth_getBlockTransactionCountByHash"
            | "eth_getBlockReceipts"
            | "eth_getTransactionByBlockNumberAndIndex"
            | "eth_getTransactionByBlockHashAndIndex" => self.block(method, params).await,
            "eth_getTransactionByHash" => {
                let hash: B256 = p.next("transaction hash")?;
                self.read(move |view| reply(&view.transaction(hash)?)).await
            }
            "eth_getTransactionReceipt" => {
                let hash: B256 = p.next("transaction hash")?;
                self.read(move |view| reply(&view.receipt(hash)?)).await
            }
            "eth_feeHistory" => self.fee_history(params).await,
            "eth_sendRawTransaction" => {
                let raw: Bytes = p.next("transaction")?;
                let change = Change::Transaction(Box::new(raw::decode(&raw)?));
                self.change(change).await
            }
            "eth_getLogs" => {
                let wanted = Wanted::new(&p.next::<Filter>("filter")?)?;
                self.logs(wanted).await
            }
            "eth_newFilter"
            | "eth_newBlockFilter"
            | "eth_getFilterChanges"
            | "eth_getFilterLogs"
            | "eth_uninstallFilter" => self.filter(method, params).await,
            "evm_increaseTime"
            | "evm_setNextBlockTimestamp"
            | "evm_mine"
            | "evm_snapshot"
            | "evm_revert" => self.develop(method, params).await,
            _ => Err(RpcError::Method(method.to_owned())),
        }
    }

    async fn account(&self, method: &str, mut params: Params) -> Answer {
        let address: Address = params.next("address")?;
        let slot: U256 = if method == "eth_getStorageAt" {
            params.next("slot")?
        } else {
            U256::ZERO
        };
        let block = params.optional::<BlockId>("block")?.unwrap_or_default();
        params.end()?;
        match method {
            "eth_getBalance" => {
                self.read(move |view| reply(&view.balance(address, block)?))
                    .await
            }
            "eth_getTransactionCount" => {
                self.read(move |view| reply(&U64::from(view.nonce(address, block)?)))
                    .await
            }
            "eth_getCode" => {
                self.read(move |view| reply(&view.code(address, block)?))
                    .await
            }
            _ => {
                self.read(move |view| reply(&view.storage(address, slot, block)?))
                    .await
            }
        }
    }

    async fn call(&self, method: &str, mut params: Params) -> Answer {
        let call = Call::new(params.next::<TransactionRequest>("transaction")?)?;
        let block = params.optional::<BlockId>("block")?.unwrap_or_default();
        // What follows would override state or block: not here.
        params.end()?;
        let is_estimate = method == "eth_estimateGas";
        self.read(move |view| {
            if is_estimate {
                reply(&U64::from(view.estimate(call, block)?))
            } else {
                reply(&view.call(&call, block)?)
            }
        })
        .await
    }

    async fn block(&self, method: &str, mut params: Params) -> Answer {
        let block = if method.contains("Hash") {
            BlockId::from(params.next::<B256>("block hash")?)
        } else {
            params.next::<BlockId>("block")?
        };
        match method {
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                let full = params.optional("full transactions")?.unwrap_or(false);
                params.end()?;
                self.read(move |view| reply(&view.block(block, full)?))
                    .await
            }
            "eth_getBlockReceipts" => {
                self.read(move |view| {
                    let receipts = view.row(block)?.map(|row| view.receipt_of(row));
                    let receipts = receipts.transpose()?;
                    reply(&receipts.map(Vec::from_iter))
                })
                .await
            }
            "eth_getTransactionByBlockNumberAndIndex" | "eth_getTransactionByBlockHashAndIndex" => {
                let index = params.quantity("index")?;
                self.read(move |view| {
                    let row = view.row(block)?.filter(|_| index == Some(0));
                    reply(&row.and_then(transaction_of))
                })
                .await
            }
            _ => {
                self.read(move |view| {
                    let count = |row: store::BlockRow| U64::from(row.transaction.iter().len());
                    reply(&view.row(block)?.map(count))
                })
                .await
            }
        }
    }

    async fn fee_history(&self, mut params: Params) -> Answer {
        let count = params.quantity("block count")?.unwrap_or_default();
        let newest: BlockNumberOrTag = params.next("newest block")?;
        let percentiles: Option<Vec<f64>> = params.optional("percentiles")?;
        self.read(move |view| reply(&view.fee_history(count, newest, percentiles.as_deref())?))
            .await
    }

    async fn logs(&self, wanted: Wanted) -> Answer {
        self.read(move |view| {
            let (from, to) = wanted.range(view)?;
            reply(&wanted.between(view, from, to)?)
        })
        .await
    }

    async fn filter(&self, method: &str, mut params: Params) -> Answer {
        match method {
            "eth_newFilter" => {
                let wanted = Wanted::new(&params.next::<Filter>("filter")?)?;
                self.new_filter(Kind::Logs(Box::new(wanted))).await
            }
            "eth_newBlockFilter" => self.new_filter(Kind::Blocks).await,
            "eth_uninstallFilter" => {
                let id = required(params.quantity("filter id")?)?;
                reply(&self.with_filters(|filters| filters.remove(id)))
            }
            "eth_getFilterLogs" => {
                let id = required(params.quantity("filter id")?)?;
                match self.with_filters(|filters| filters.get(id, Instant::now()))? {
                    (Kind::Logs(wanted), _) => self.logs(*wanted).await,
                    (Kind::Blocks, _) => Err(RpcError::Refused("filter not found".to_owned())),
                }
            }
            _ => {
                let id = required(params.quantity("filter id")?)?;
                self.filter_changes(id).await
            }
        }
    }

    async fn new_filter(&self, kind: Kind) -> Answer {
        let head = self.read(|view| Ok(view.head.number)).await?;
        let id = self.with_filters(|filters| filters.add(kind, head, Instant::now()));
        reply(&U64::from(id))
    }

    async fn filter_changes(&self, id: u64) -> Answer {
        let (kind, next) = self.with_filters(|filters| filters.get(id, Instant::now()))?;
        let (answer, next) = self
            .read(move |view| {
                let to = view.head.number;
                match kind {
                    Kind::Blocks => {
                        let to = to.min(next.saturating_add(FILTER_BLOCKS_MAX - 1));
                        let mut hashes = Vec::new();
                        for number in next..=to {
                            hashes.extend(store::hash_of(view.conn, number)?);
                        }
                        Ok((reply(&hashes)?, to + 1))
                    }
                    Kind::Logs(wanted) => Ok((reply(&wanted.between(view, next, to)?)?, to + 1)),
                }
            })
            .await?;
        self.with_filters(|filters| filters.seen(id, next));
        Ok(answer)
    }

    /// Methods that only development chains have.
    async fn develop(&self, method: &str, mut params: Params) -> Answer {
        let change = match method {
            "evm_increaseTime" => Change::IncreaseTime {
                seconds: required(params.quantity("seconds")?)?,
            },
            "evm_setNextBlockTimestamp" => {
                Change::SetNextTimestamp(required(params.quantity("timestamp")?)?)
            }
            "evm_mine" => mine(params.optional("timestamp")?)?,
            "evm_snapshot" => Change::Snapshot,
            _ => Change::Revert {
                id: required(params.quantity("snapshot id")?)?,
            },
        };
        let is_revert = matches!(change, Change::Revert { .. });
        let answer = self.change(change).await?;
        if is_revert {
            let head = self.read(|view| Ok(view.head.number)).await?;
            self.with_filters(|filters| filters.rewind(head));
        }
        Ok(answer)
    }

    /// Hands a change to the writer; answered once it is on the disk. Up to the hand-over nothing is
    /// awaited: requests that are polled in order are mined in order.
    async fn change(&self, change: Change) -> Answer {
        let gone = || RpcError::Internal("the chain has ended".to_owned());
        let (answer, waiting) = oneshot::channel();
        let jobs = self.inner.jobs.as_ref().ok_or_else(gone)?;
        jobs.try_send(Job { change, answer })
            .map_err(|error| match error {
                TrySendError::Full(_) => RpcError::Limit(
                    "too many requests: too many transactions wait to be mined; try again"
                        .to_owned(),
                ),
                TrySendError::Disconnected(_) => gone(),
            })?;
        let value = waiting.await.map_err(|_| gone())??;
        reply(&value)
    }

    async fn read<T, F>(&self, question: F) -> Result<T, RpcError>
    where
        T: Send + 'static,
        F: FnOnce(&View<'_>) -> Result<T, RpcError> + Send + 'static,
    {
        self.inner.readers.read(question).await
    }

    fn with_filters<T>(&self, work: impl FnOnce(&mut Filters) -> T) -> T {
        let mut filters = self
            .inner
            .filters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        work(&mut filters)
    }
}

const CLIENT_VERSION: &str = concat!("tenzro-ledger/", env!("CARGO_PKG_VERSION"));

fn reply<T: Serialize + ?Sized>(value: &T) -> Answer {
    to_raw_value(value).map_err(|error| RpcError::Internal(error.to_string()))
}

fn required(value: Option<u64>) -> Result<u64, RpcError> {
    value.ok_or_else(|| RpcError::Params("missing value for required argument 0".to_owned()))
}

/// `evm_mine` takes nothing, a timestamp, or (Ganache, Anvil) `{timestamp, blocks}`.
fn mine(options: Option<Value>) -> Result<Change, RpcError> {
    let options = options.unwrap_or_default();
    let number = |value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => quantity(value)
            .map(Some)
            .ok_or_else(|| RpcError::Params(format!("{value} is no number"))),
    };
    if !options.is_object() {
        return Ok(Change::Mine {
            blocks: 1,
            timestamp: number(Some(&options))?,
        });
    }
    let blocks = number(options.get("blocks"))?.unwrap_or(1);
    if blocks > MINE_MAX {
        let error = format!("at most {MINE_MAX} blocks at once");
        return Err(RpcError::Params(error));
    }
    Ok(Change::Mine {
        blocks,
        timestamp: number(options.get("timestamp"))?,
    })
}
