//! The contracts as Rust types, generated from the compiled artifacts in `contracts/artifacts/`, so
//! that no width or name can differ from what runs on the chain.

#![allow(
    missing_docs,
    clippy::too_many_arguments,
    reason = "generated; the sources in contracts/src/ document each item"
)]

use alloy::sol;

sol!(
    #[sol(rpc, abi)]
    #[derive(Debug)]
    TNZO,
    "../../contracts/artifacts/TNZO.json"
);
sol!(
    #[sol(rpc, abi)]
    #[derive(Debug)]
    Faucet,
    "../../contracts/artifacts/Faucet.json"
);
sol!(
    #[sol(rpc, abi)]
    #[derive(Debug)]
    ProviderRegistry,
    "../../contracts/artifacts/ProviderRegistry.json"
);
sol!(
    #[sol(rpc, abi)]
    #[derive(Debug)]
    PaymentChannels,
    "../../contracts/artifacts/PaymentChannels.json"
);
