//! What a wallet can do with channels, each as one mined transaction that has succeeded, or an error.
//!
//! Why the escrow refuses is told by [`SendError::channel_refusal`]. After
//! [`SendError::NotMined`] the transaction may still be mined: look with [`Ledger::channel_now`]
//! before doing it again.
//!
//! [`Ledger::channel_now`]: crate::Ledger::channel_now

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::types::TransactionReceipt;
use alloy::sol_types::{SolCall, SolError, SolEventInterface};

use super::{ChannelRefusal, ChannelTerms, OpenRequest, TopUpRequest};
use crate::contracts::PaymentChannels::{self as Contract, PaymentChannelsEvents as Event};
use crate::contracts::TNZO;
use crate::ledger::LedgerError;
use crate::operations::Operations;
use crate::transaction::SendError;

/// A voucher to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The channel.
    pub channel_id: B256,
    /// Wei since the channel was opened.
    pub cumulative: u128,
    /// Of the voucher.
    pub signature: Bytes,
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub struct SettledBatch {
    /// Of the transaction.
    pub receipt: TransactionReceipt,
    /// Of each row, in their order.
    pub rows: Vec<RowOutcome>,
}

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOutcome {
    /// It was paid.
    Settled {
        /// Wei that the payee got by it.
        amount: u128,
    },
    /// It was left out.
    Skipped(ChannelRefusal),
}

impl Operations<'_> {
    /// Opens a channel from the wallet with a deposit of so many wei. Where the escrow may not draw
    /// that much yet, it is allowed exactly the deposit first, in a transaction of its own.
    pub async fn open_channel(
        self,
        terms: &ChannelTerms,
        deposit: u128,
    ) -> Result<TransactionReceipt, SendError> {
        let call = Contract::openCall {
            payee: terms.payee,
            token_: self.ledger.addresses().tnzo,
            deposit,
            salt: terms.salt,
            authorizedSigner: terms.authorized_signer,
        };
        self.draw(deposit, call).await
    }

    /// Opens a channel for whoever signed the request, who needs no gas coin. Somebody else may have
    /// submitted it before: then the channel exists.
    pub async fn open_channel_with_authorization(
        self,
        request: &OpenRequest,
    ) -> Result<TransactionReceipt, SendError> {
        let OpenRequest {
            terms,
            authorization,
        } = request;
        self.on_channels(Contract::openWithAuthorizationCall {
            payee: terms.payee,
            token_: self.ledger.addresses().tnzo,
            deposit: authorization.value,
            salt: terms.salt,
            authorizedSigner: terms.authorized_signer,
            from: authorization.from,
            validAfter: U256::from(authorization.valid_after),
            validBefore: U256::from(authorization.valid_before),
            nonce: authorization.nonce,
            signature: authorization.signature.into(),
        })
        .await
    }

    /// Puts so many wei more in, as the channel's payer, and so takes a wish to close it back. Allows
    /// the escrow to draw them as [`Self::open_channel`] does.
    pub async fn top_up_channel(
        self,
        id: B256,
        amount: u128,
    ) -> Result<TransactionReceipt, SendError> {
        let call = Contract::topUpCall {
            channelId: id,
            additionalDeposit: amount,
        };
        self.draw(amount, call).await
    }

    /// Puts more in for whoever signed the request.
    pub async fn top_up_channel_with_authorization(
        self,
        request: &TopUpRequest,
    ) -> Result<TransactionReceipt, SendError> {
        let authorization = &request.authorization;
        self.on_channels(Contract::topUpWithAuthorizationCall {
            channelId: request.channel_id,
            additionalDeposit: authorization.value,
            from: authorization.from,
            topUpSalt: request.salt,
            validAfter: U256::from(authorization.valid_after),
            validBefore: U256::from(authorization.valid_before),
            nonce: authorization.nonce,
            signature: authorization.signature.into(),
        })
        .await
    }

    /// Draws on a channel, as its payee.
    pub async fn settle_channel(
        self,
        voucher: &Settlement,
    ) -> Result<TransactionReceipt, SendError> {
        self.on_channels(Contract::settleCall {
            channelId: voucher.channel_id,
            cumulativeAmount: voucher.cumulative,
            signature: voucher.signature.clone(),
        })
        .await
    }

    /// Draws on many channels, as their payee, in one transaction. A row that cannot be settled is left
    /// out and costs gas: how many fit into a block is for the caller to know, about 30,000 gas each.
    pub async fn settle_channels(self, rows: &[Settlement]) -> Result<SettledBatch, SendError> {
        let call = Contract::settleBatchCall {
            rows: rows.iter().map(Into::into).collect(),
        };
        let receipt = self.on_channels(call).await?;
        let rows = outcomes(&receipt, rows, self.ledger.addresses().payment_channels);
        match rows {
            Some(rows) => Ok(SettledBatch { receipt, rows }),
            None => Err(LedgerError::Receipt(receipt.transaction_hash).into()),
        }
    }

    /// Draws on a channel a last time, as its payee, gives the payer the rest back and closes it for
    /// ever. With not more than was settled before no signature is needed.
    pub async fn close_channel(
        self,
        voucher: &Settlement,
    ) -> Result<TransactionReceipt, SendError> {
        self.on_channels(Contract::closeCall {
            channelId: voucher.channel_id,
            cumulativeAmount: voucher.cumulative,
            signature: voucher.signature.clone(),
        })
        .await
    }

    /// Begins the grace period after which the wallet, the channel's payer, can withdraw. Asking again
    /// changes nothing.
    pub async fn request_channel_close(self, id: B256) -> Result<TransactionReceipt, SendError> {
        self.on_channels(Contract::requestCloseCall { channelId: id })
            .await
    }

    /// Gives the wallet, the channel's payer, back what was not settled, after the grace period, and
    /// closes the channel for ever.
    pub async fn withdraw_channel(self, id: B256) -> Result<TransactionReceipt, SendError> {
        self.on_channels(Contract::withdrawCall { channelId: id })
            .await
    }

    /// A call that draws so many wei from the wallet by its allowance.
    async fn draw(
        self,
        amount: u128,
        call: impl SolCall + Clone,
    ) -> Result<TransactionReceipt, SendError> {
        let contracts = self.ledger.addresses();
        // Another draw of this wallet would use this one's allowance up, or replace it.
        let _one_allowance = self.account.allowances().await;
        match self.on_channels(call.clone()).await {
            Err(error) if is_not_allowed(&error) => {}
            other => return other,
        }
        // All else is as the escrow wants it. Nothing is allowed that could not be drawn.
        let (to, value) = (contracts.payment_channels, U256::from(amount));
        let transfer = TNZO::transferCall { to, value };
        self.account.check(contracts.tnzo, transfer).await?;
        let approve = TNZO::approveCall { spender: to, value };
        self.account.call(contracts.tnzo, approve).await?;
        self.on_channels(call).await
    }

    async fn on_channels(self, call: impl SolCall) -> Result<TransactionReceipt, SendError> {
        let escrow = self.ledger.addresses().payment_channels;
        self.account.call(escrow, call).await
    }
}

fn is_not_allowed(error: &SendError) -> bool {
    let SendError::Reverted { data, .. } = error else {
        return false;
    };
    TNZO::ERC20InsufficientAllowance::abi_decode(data).is_ok()
}

impl From<&Settlement> for Contract::Settlement {
    fn from(row: &Settlement) -> Self {
        Self {
            channelId: row.channel_id,
            cumulativeAmount: row.cumulative,
            signature: row.signature.clone(),
        }
    }
}

/// The contract tells one event for each row, in their order. `None` where that is not what the
/// receipt has.
fn outcomes(
    receipt: &TransactionReceipt,
    rows: &[Settlement],
    escrow: Address,
) -> Option<Vec<RowOutcome>> {
    let logs = receipt.logs().iter();
    let events: Vec<_> = logs
        .filter(|log| log.address() == escrow)
        .map(|log| Event::decode_log(&log.inner))
        .collect::<Result<_, _>>()
        .ok()?;
    if events.len() != rows.len() {
        return None;
    }
    let told = events.into_iter().map(|event| match event.data {
        Event::ChannelSettled(event) => {
            let amount = event.amount;
            let outcome = RowOutcome::Settled { amount };
            Some((event.channelId, event.settled, outcome))
        }
        Event::SettlementSkipped(event) => {
            let outcome = RowOutcome::Skipped(ChannelRefusal::of(&event.reason[..]));
            Some((event.channelId, event.cumulativeAmount, outcome))
        }
        _ => None,
    });
    rows.iter()
        .zip(told)
        .map(|(row, told)| {
            let (id, cumulative, outcome) = told?;
            ((id, cumulative) == (row.channel_id, row.cumulative)).then_some(outcome)
        })
        .collect()
}
