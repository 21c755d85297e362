//! A payer, a payee and a stranger, each with TNZO, on the embedded chain.

use alloy::primitives::{Address, B256, U256, keccak256};
use serde_json::json;
use tenzro_ledger::channels::{Channel, ChannelRefusal, ChannelTerms, Escrow, Settlement};
use tenzro_ledger::{Account, Ledger, Operations, SendError};
use tenzro_protocol::amount::Wei;

use super::scene::{Scene, TNZO_WEI, developer, wallet};
use super::vouchers::voucher;

/// Wei of TNZO that each has.
pub(crate) const FUNDS: u128 = 100 * TNZO_WEI;
/// Rules of the embedded chain.
pub(crate) const GRACE_SECONDS: u64 = 3600;

pub(crate) struct Parties {
    pub(crate) scene: Scene,
    pub(crate) ledger: Ledger,
    pub(crate) escrow: Escrow,
    pub(crate) payer: Account,
    pub(crate) payee: Account,
    pub(crate) stranger: Account,
}

impl Parties {
    pub(crate) async fn new() -> Self {
        let scene = Scene::new();
        let ledger = scene.ledger().await;
        let treasury = scene.account(developer());
        let [payer, payee, stranger] = [1, 2, 3].map(|number| scene.account(wallet(number)));
        for account in [&payer, &payee, &stranger] {
            let operations = Operations {
                ledger: &ledger,
                account: &treasury,
            };
            let paid = operations.transfer(account.address(), Wei(FUNDS)).await;
            paid.unwrap();
        }
        Self {
            escrow: ledger.escrow(),
            scene,
            ledger,
            payer,
            payee,
            stranger,
        }
    }

    pub(crate) fn by<'a>(&'a self, account: &'a Account) -> Operations<'a> {
        Operations {
            ledger: &self.ledger,
            account,
        }
    }

    /// With the payer as signer.
    pub(crate) fn terms(&self, salt: u64) -> ChannelTerms {
        ChannelTerms {
            payee: self.payee.address(),
            salt: keccak256(salt.to_be_bytes()),
            authorized_signer: Address::ZERO,
        }
    }

    /// Opens a channel of the payer.
    pub(crate) async fn open(&self, salt: u64, deposit: u128) -> B256 {
        let terms = self.terms(salt);
        let opened = self.by(&self.payer).open_channel(&terms, deposit).await;
        opened.unwrap();
        terms.id(self.payer.address(), &self.escrow)
    }

    /// A voucher of the payer.
    pub(crate) fn voucher(&self, id: B256, amount: u128) -> Settlement {
        voucher(self.payer.signer(), &self.escrow, id, amount)
    }

    pub(crate) async fn channel(&self, id: B256) -> Option<Channel> {
        self.ledger.channel_now(id).await.unwrap()
    }

    /// Lets time pass.
    pub(crate) async fn wait(&self, seconds: u64) {
        self.scene.get("evm_increaseTime", json!([seconds])).await;
    }

    /// Wei of payer, payee and escrow.
    pub(crate) async fn balances(&self) -> [u128; 3] {
        let mut balances = [0; 3];
        let accounts = [
            self.payer.address(),
            self.payee.address(),
            self.escrow.address,
        ];
        for (balance, account) in balances.iter_mut().zip(accounts) {
            *balance = self.scene.balance(account).await.to();
        }
        balances
    }

    /// Wei that the escrow may draw from the payer.
    pub(crate) async fn allowance(&self) -> U256 {
        let tnzo = self.ledger.tnzo();
        let allowance = tnzo.allowance(self.payer.address(), self.escrow.address);
        allowance.call().await.unwrap()
    }

    /// Transactions of the payer.
    pub(crate) async fn payer_nonce(&self) -> u64 {
        self.ledger.nonce(self.payer.address()).await.unwrap()
    }
}

/// Why it was refused, before anything was sent.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, SendError>) -> ChannelRefusal {
    let error = result.unwrap_err();
    let refusal = error.channel_refusal();
    let SendError::Reverted {
        transaction: None, ..
    } = &error
    else {
        panic!("{error:?}");
    };
    refusal.unwrap()
}
