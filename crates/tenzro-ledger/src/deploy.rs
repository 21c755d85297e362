//! Puts the contracts on a chain that has none.

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::{SolCall, SolConstructor};
use tenzro_protocol::amount::Wei;

use crate::contracts::{Faucet, PaymentChannels, ProviderRegistry, TNZO};
use crate::ledger::Addresses;
use crate::transaction::{Account, SendError};

/// Rules of a ledger, fixed when it is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Receives the whole supply, and what is slashed.
    pub treasury: Address,
    /// May slash.
    pub arbiter: Address,
    /// Wei that ever exist.
    pub supply: Wei,
    /// Wei that a provider must have staked.
    pub minimum_stake: Wei,
    /// From asking for stake until it can be withdrawn.
    pub unbonding_seconds: u64,
    /// Until a price rise takes effect.
    pub price_delay_seconds: u64,
    /// From a payer's wish to close a channel until he can without the payee; at least 15 minutes.
    pub close_grace_seconds: u64,
}

/// A faucet of a development ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaucetRules {
    /// Wei that it starts with.
    pub funds: Wei,
    /// Wei that it gives an address at once.
    pub amount: Wei,
    /// Seconds until it gives the same address again.
    pub period_seconds: u64,
}

impl Rules {
    /// The rules of the design: 1,000 TNZO, 7 days, 60 s, 1 hour, and 10^9 TNZO in all.
    pub const fn standard(treasury: Address, arbiter: Address) -> Self {
        Self {
            treasury,
            arbiter,
            supply: Wei::from_whole_tnzo(1_000_000_000),
            minimum_stake: Wei::from_whole_tnzo(1_000),
            unbonding_seconds: 7 * 24 * 3600,
            price_delay_seconds: 60,
            close_grace_seconds: 3600,
        }
    }

    pub(crate) fn tnzo_code(&self) -> Bytes {
        let arguments = TNZO::constructorCall {
            treasury: self.treasury,
            supply: U256::from(self.supply.0),
        };
        init_code(&TNZO::BYTECODE, &arguments)
    }

    pub(crate) fn registry_code(&self, token: Address) -> Bytes {
        let arguments = ProviderRegistry::constructorCall {
            token_: token,
            arbiter_: self.arbiter,
            treasury_: self.treasury,
            minimumStake_: U256::from(self.minimum_stake.0),
            unbondingPeriod_: self.unbonding_seconds,
            priceDelay_: self.price_delay_seconds,
        };
        init_code(&ProviderRegistry::BYTECODE, &arguments)
    }

    pub(crate) fn channels_code(&self, token: Address) -> Bytes {
        let arguments = PaymentChannels::constructorCall {
            token_: token,
            closeGracePeriod: self.close_grace_seconds,
        };
        init_code(&PaymentChannels::BYTECODE, &arguments)
    }
}

impl FaucetRules {
    /// 20,000 TNZO per address and day, out of half the supply.
    pub const fn standard() -> Self {
        Self {
            funds: Wei::from_whole_tnzo(500_000_000),
            amount: Wei::from_whole_tnzo(20_000),
            period_seconds: 24 * 3600,
        }
    }

    pub(crate) fn code(&self, token: Address) -> Bytes {
        let arguments = Faucet::constructorCall {
            token_: token,
            amount_: U256::from(self.amount.0),
            period_: U256::from(self.period_seconds),
        };
        init_code(&Faucet::BYTECODE, &arguments)
    }

    /// The treasury's transfer to the faucet.
    pub(crate) fn funding(&self, faucet: Address) -> Bytes {
        self.funding_call(faucet).abi_encode().into()
    }

    fn funding_call(&self, faucet: Address) -> TNZO::transferCall {
        let value = U256::from(self.funds.0);
        TNZO::transferCall { to: faucet, value }
    }
}

/// Deploys all contracts and tells each as it is mined. A faucet is funded by the account, which
/// has to be the treasury then.
pub async fn deploy(
    account: &Account,
    rules: Rules,
    faucet: Option<FaucetRules>,
    mut deployed: impl FnMut(&'static str, Address),
) -> Result<Addresses, SendError> {
    let mut first_block = u64::MAX;
    let mut create = async |name: &'static str, code: Bytes| {
        let receipt = account.deploy(code).await?;
        first_block = first_block.min(receipt.block_number.unwrap_or_default());
        let address = receipt.contract_address.unwrap_or_default();
        deployed(name, address);
        Ok::<Address, SendError>(address)
    };
    let tnzo = create("TNZO", rules.tnzo_code()).await?;
    let provider_registry = create("ProviderRegistry", rules.registry_code(tnzo)).await?;
    let payment_channels = create("PaymentChannels", rules.channels_code(tnzo)).await?;
    let faucet_address = match faucet {
        Some(faucet) => Some(create("Faucet", faucet.code(tnzo)).await?),
        None => None,
    };
    if let Some((faucet, address)) = faucet.zip(faucet_address) {
        account.call(tnzo, faucet.funding_call(address)).await?;
    }
    Ok(Addresses {
        tnzo,
        faucet: faucet_address,
        provider_registry,
        payment_channels,
        first_block,
    })
}

fn init_code(bytecode: &Bytes, arguments: &impl SolConstructor) -> Bytes {
    [&bytecode[..], &arguments.abi_encode()[..]].concat().into()
}
