//! Questions about the chain at one moment: blocks, transactions, receipts, accounts and calls, in the
//! shapes of the Ethereum JSON-RPC.

use alloy::consensus::transaction::Recovered;
use alloy::consensus::{Receipt, ReceiptEnvelope, Transaction as _};
use alloy::eips::{BlockId, BlockNumberOrTag, RpcBlockHash};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rlp::Encodable;
use alloy::rpc::types::{
    Block, BlockTransactions, FeeHistory, Header, Log, Transaction, TransactionReceipt,
};

use super::clock;
use super::error::RpcError;
use super::execute::{Call, Surroundings};
use super::genesis::BLOCK_GAS_LIMIT;
use super::readers::View;
use super::state::{self, Cache, State};
use super::store::{self, BlockRow, LogRow, Mined};

/// Blocks of a fee history at most. Source: geth `eth/gasprice/feehistory.go`.
const FEE_HISTORY_MAX: u64 = 1_024;
/// Percentiles of a fee history at most. Source: the same.
const PERCENTILES_MAX: usize = 100;

impl View<'_> {
    /// The number that is meant; `None` when there is no such block.
    pub(super) fn resolve(&self, block: BlockId) -> Result<Option<u64>, RpcError> {
        match block {
            BlockId::Hash(RpcBlockHash { block_hash, .. }) => {
                Ok(store::number_of(self.conn, block_hash)?)
            }
            BlockId::Number(tag) => Ok(self.number(tag)),
        }
    }

    /// Nothing waits to be mined and nothing is ever reorganised by itself: the last block is the
    /// pending, safe and final one too.
    pub(super) fn number(&self, tag: BlockNumberOrTag) -> Option<u64> {
        match tag {
            BlockNumberOrTag::Number(number) => Some(number).filter(|_| number <= self.head.number),
            BlockNumberOrTag::Earliest => Some(0),
            _ => Some(self.head.number),
        }
    }

    /// The state that is asked about must be there.
    fn known(&self, block: BlockId) -> Result<u64, RpcError> {
        // Geth's words; clients look for them.
        self.resolve(block)?
            .ok_or_else(|| RpcError::Refused("header not found".to_owned()))
    }

    pub(super) fn balance(&self, address: Address, block: BlockId) -> Result<U256, RpcError> {
        let account = state::account(self.conn, address, self.known(block)?)?;
        Ok(account.map(|account| account.balance).unwrap_or_default())
    }

    pub(super) fn nonce(&self, address: Address, block: BlockId) -> Result<u64, RpcError> {
        let account = state::account(self.conn, address, self.known(block)?)?;
        Ok(account.map(|account| account.nonce).unwrap_or_default())
    }

    pub(super) fn code(&self, address: Address, block: BlockId) -> Result<Bytes, RpcError> {
        let code = state::code(self.conn, self.codes, address, self.known(block)?)?;
        Ok(code.original_bytes())
    }

    pub(super) fn storage(
        &self,
        address: Address,
        slot: U256,
        block: BlockId,
    ) -> Result<B256, RpcError> {
        let value = state::storage(self.conn, address, slot, self.known(block)?)?;
        Ok(value.into())
    }

    pub(super) fn call(&self, call: &Call, block: BlockId) -> Result<Bytes, RpcError> {
        let number = self.known(block)?;
        let surroundings = self.surroundings(block, number)?;
        self.with_state(number, |state| call.output(state, surroundings))
    }

    pub(super) fn estimate(&self, mut call: Call, block: BlockId) -> Result<u64, RpcError> {
        let number = self.known(block)?;
        let surroundings = self.surroundings(block, number)?;
        self.with_state(number, |state| call.estimate(state, surroundings))
    }

    fn with_state<T>(
        &self,
        block: u64,
        work: impl FnOnce(&mut State<'_>) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut cache = Cache::default();
        work(&mut State {
            conn: self.conn,
            block,
            codes: self.codes,
            cache: &mut cache,
            deadline: Some(self.deadline),
        })
    }

    /// A call on the last block sees the time that the next block would have: there is no block
    /// without a transaction here, so the last one may be days old, and what has become due since
    /// then, like the end of an unbonding, must not look as if it had not.
    fn surroundings(&self, block: BlockId, number: u64) -> Result<Surroundings, RpcError> {
        let is_latest = matches!(
            block,
            BlockId::Number(
                BlockNumberOrTag::Latest
                    | BlockNumberOrTag::Pending
                    | BlockNumberOrTag::Safe
                    | BlockNumberOrTag::Finalized
            )
        );
        if is_latest {
            let is_pending = block == BlockId::pending();
            return Ok(Surroundings {
                number: number + u64::from(is_pending),
                timestamp: clock::next_timestamp(self.conn, &self.head, self.now)?,
            });
        }
        let row = store::block_by_number(self.conn, number)?;
        let timestamp = row.map_or(self.head.timestamp, |row| row.header.timestamp);
        Ok(Surroundings { number, timestamp })
    }

    pub(super) fn block(
        &self,
        block: BlockId,
        with_transactions: bool,
    ) -> Result<Option<Block>, RpcError> {
        Ok(self.row(block)?.map(|row| block_of(row, with_transactions)))
    }

    pub(super) fn row(&self, block: BlockId) -> Result<Option<BlockRow>, RpcError> {
        let row = match block {
            BlockId::Hash(hash) => store::block_by_hash(self.conn, hash.block_hash)?,
            BlockId::Number(tag) => match self.number(tag) {
                Some(number) => store::block_by_number(self.conn, number)?,
                None => None,
            },
        };
        Ok(row)
    }

    pub(super) fn transaction(&self, hash: B256) -> Result<Option<Transaction>, RpcError> {
        let row = store::block_by_tx(self.conn, hash)?;
        Ok(row.and_then(transaction_of))
    }

    pub(super) fn receipt(&self, hash: B256) -> Result<Option<TransactionReceipt>, RpcError> {
        match store::block_by_tx(self.conn, hash)? {
            Some(row) => self.receipt_of(row),
            None => Ok(None),
        }
    }

    /// The receipt of a block's transaction.
    pub(super) fn receipt_of(&self, row: BlockRow) -> Result<Option<TransactionReceipt>, RpcError> {
        let BlockRow {
            hash,
            header,
            transaction,
        } = row;
        let Some(mined) = transaction else {
            return Ok(None);
        };
        let logs = store::logs_of(self.conn, header.number)?;
        let receipt = Receipt {
            status: mined.succeeded.into(),
            cumulative_gas_used: header.gas_used,
            logs: logs.into_iter().map(log_of).collect::<Vec<Log>>(),
        };
        let envelope = &mined.envelope;
        let created = envelope.kind().is_create();
        Ok(Some(TransactionReceipt {
            inner: ReceiptEnvelope::from_typed(
                envelope.tx_type(),
                alloy::consensus::ReceiptWithBloom::new(receipt, header.logs_bloom),
            ),
            transaction_hash: mined.hash,
            transaction_index: Some(0),
            block_hash: Some(hash),
            block_number: Some(header.number),
            gas_used: header.gas_used,
            effective_gas_price: 0,
            blob_gas_used: None,
            blob_gas_price: None,
            from: mined.sender,
            to: envelope.to(),
            contract_address: created.then(|| mined.sender.create(envelope.nonce())),
        }))
    }

    pub(super) fn fee_history(
        &self,
        count: u64,
        newest: BlockNumberOrTag,
        percentiles: Option<&[f64]>,
    ) -> Result<FeeHistory, RpcError> {
        if percentiles.is_some_and(|percentiles| percentiles.len() > PERCENTILES_MAX) {
            let error = format!("at most {PERCENTILES_MAX} percentiles");
            return Err(RpcError::Params(error));
        }
        let newest = self.known(newest.into())?;
        let count = count.min(FEE_HISTORY_MAX).min(newest + 1);
        let oldest = newest + 1 - count;
        let mut ratios = Vec::new();
        for number in oldest..oldest + count {
            let row = store::block_by_number(self.conn, number)?;
            let gas_used = row.map_or(0, |row| row.header.gas_used);
            #[allow(
                clippy::cast_precision_loss,
                reason = "both are at most thirty million"
            )]
            ratios.push(gas_used as f64 / BLOCK_GAS_LIMIT as f64);
        }
        let blocks = ratios.len();
        Ok(FeeHistory {
            base_fee_per_gas: vec![0; blocks + 1],
            gas_used_ratio: ratios,
            base_fee_per_blob_gas: vec![0; blocks + 1],
            blob_gas_used_ratio: vec![0.0; blocks],
            oldest_block: oldest,
            reward: percentiles.map(|percentiles| vec![vec![0; percentiles.len()]; blocks]),
        })
    }
}

fn block_of(row: BlockRow, with_transactions: bool) -> Block {
    let transactions: Vec<_> = row
        .transaction
        .iter()
        .map(|mined| &mined.envelope)
        .collect();
    let body = alloy::consensus::BlockBody {
        transactions,
        ommers: Vec::new(),
        withdrawals: Some(Default::default()),
    };
    let size = alloy::consensus::Block {
        header: row.header.clone(),
        body,
    }
    .length();
    let header = Header {
        hash: row.hash,
        inner: row.header.clone(),
        total_difficulty: Some(U256::ZERO),
        size: Some(U256::from(size)),
    };
    let transactions = if with_transactions {
        BlockTransactions::Full(transaction_of(row).into_iter().collect())
    } else {
        BlockTransactions::Hashes(row.transaction.iter().map(|mined| mined.hash).collect())
    };
    Block::new(header, transactions).with_withdrawals(Some(Default::default()))
}

pub(super) fn transaction_of(row: BlockRow) -> Option<Transaction> {
    let Mined {
        sender, envelope, ..
    } = row.transaction?;
    Some(Transaction {
        inner: Recovered::new_unchecked(envelope, sender),
        block_hash: Some(row.hash),
        block_number: Some(row.header.number),
        transaction_index: Some(0),
        effective_gas_price: Some(0),
        block_timestamp: Some(row.header.timestamp),
    })
}

pub(super) fn log_of(row: LogRow) -> Log {
    Log {
        inner: row.log,
        block_hash: Some(row.block_hash),
        block_number: Some(row.block),
        block_timestamp: Some(row.timestamp),
        transaction_hash: Some(row.tx_hash),
        transaction_index: Some(0),
        log_index: Some(row.position),
        removed: false,
    }
}
