//! Payers and payees of channels on an anvil.

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use tenzro_ledger::channels::ChannelTerms;
use tenzro_ledger::contracts::TNZO;
use tenzro_ledger::{Account, Ledger, Operations};

use super::scene::{Scene, tnzo};

/// With the payer as signer.
pub(crate) fn terms(payee: Address, salt: u64) -> ChannelTerms {
    ChannelTerms {
        payee,
        salt: keccak256(salt.to_be_bytes()),
        authorized_signer: Address::ZERO,
    }
}

/// Opens a channel and tells its id.
pub(crate) async fn open(operations: Operations<'_>, terms: &ChannelTerms, deposit: u128) -> B256 {
    let opened = operations.open_channel(terms, deposit).await;
    opened.expect("opened");
    terms.id(operations.account.address(), &operations.ledger.escrow())
}

/// Lets the escrow draw whatever the wallet has.
pub(crate) async fn allow_all(ledger: &Ledger, account: &Account) {
    let contracts = ledger.addresses();
    let approve = TNZO::approveCall {
        spender: contracts.payment_channels,
        value: U256::MAX,
    };
    account.call(contracts.tnzo, approve).await.expect("mined");
}

impl Scene {
    /// A new wallet with so many TNZO and no gas coin.
    pub(crate) async fn wallet_without_gas(&self, count: u64) -> PrivateKeySigner {
        let signer = PrivateKeySigner::random();
        let operations = self.operations(&self.developer);
        let amount = tnzo(count);
        let paid = operations.transfer(signer.address(), amount).await;
        paid.expect("paid");
        signer
    }

    /// Wei of TNZO.
    pub(crate) async fn wei_of(&self, address: Address) -> u128 {
        self.ledger.balance(address).await.expect("readable").to()
    }
}
