//! Runs transactions and calls in the EVM, and says in geth's words why one cannot run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use alloy::consensus::{Transaction as _, TxEnvelope, Typed2718};
use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::rpc::types::TransactionRequest;
use revm::context::result::{
    EVMError, ExecutionResult, HaltReason, InvalidTransaction, ResultAndState,
};
use revm::context::{BlockEnv, TxEnv};
use revm::primitives::hardfork::SpecId;
use revm::{Context, ExecuteEvm, MainBuilder, MainContext};

use super::error::RpcError;
use super::genesis::{BLOCK_GAS_LIMIT, CHAIN_ID};
use super::state::{State, StateError};

/// The rules: Osaka, except that a transaction may use a whole block's gas (EIP-7825 would cap it at
/// 16.7 million).
const SPEC: SpecId = SpecId::OSAKA;
/// An estimate is at most this much above what is needed, in parts of 1,000. Source: geth
/// `eth/gasestimator`, `estimateGasErrorRatio`.
const ESTIMATE_SLACK_PER_MILLE: u64 = 15;
/// Left to a plain call when it sends value. Source: Yellow Paper, G_callstipend.
const CALL_STIPEND: u64 = 2_300;

/// The block that a transaction runs in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    pub(super) number: u64,
    pub(super) timestamp: u64,
}

/// Whether it is a signed transaction, or only a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transaction,
    Question,
}

/// Runs a signed transaction; its nonce, funds and gas are checked.
pub(super) fn transaction(
    state: &mut State<'_>,
    block: Surroundings,
    envelope: &TxEnvelope,
    sender: Address,
) -> Result<ResultAndState, RpcError> {
    let tx = TxEnv {
        tx_type: envelope.ty(),
        caller: sender,
        gas_limit: envelope.gas_limit(),
        // Gas is free, whatever is offered: wallets that offer a tip unasked (ethers: 1 gwei, alloy:
        // 1 wei) can then send without gas coin too.
        gas_price: 0,
        gas_priority_fee: (envelope.ty() >= 2).then_some(0),
        kind: envelope.kind(),
        value: envelope.value(),
        data: envelope.input().clone(),
        nonce: envelope.nonce(),
        chain_id: envelope.chain_id(),
        access_list: envelope.access_list().cloned().unwrap_or_default(),
        ..TxEnv::default()
    };
    run(state, block, tx, Kind::Transaction).map_err(|error| error.into_rpc(sender))
}

/// A call that changes nothing.
#[derive(Debug, Clone)]
pub(super) struct Call {
    tx: TxEnv,
}

impl Call {
    /// Reads a request. Its nonce, fees and chain id are not looked at: nothing is sent.
    pub(super) fn new(request: TransactionRequest) -> Result<Self, RpcError> {
        let unsupported = |what: &str| Err(RpcError::Params(format!("{what} are not supported")));
        if request.blob_versioned_hashes.is_some() || request.sidecar.is_some() {
            return unsupported("blobs");
        }
        if request.authorization_list.is_some() {
            return unsupported("authorization lists");
        }
        let input = &request.input;
        if let (Some(input), Some(data)) = (&input.input, &input.data)
            && input != data
        {
            return Err(RpcError::Params(
                "both \"data\" and \"input\" are set and not equal".to_owned(),
            ));
        }
        let gas = request.gas.unwrap_or(BLOCK_GAS_LIMIT);
        let tx = TxEnv {
            caller: request.from.unwrap_or_default(),
            gas_limit: gas.min(BLOCK_GAS_LIMIT),
            kind: request.to.unwrap_or(TxKind::Create),
            value: request.value.unwrap_or_default(),
            data: request.input.into_input().unwrap_or_default(),
            tx_type: u8::from(request.access_list.is_some()),
            access_list: request.access_list.unwrap_or_default(),
            chain_id: None,
            ..TxEnv::default()
        };
        Ok(Self { tx })
    }

    /// What the call answers.
    pub(super) fn output(
        &self,
        state: &mut State<'_>,
        block: Surroundings,
    ) -> Result<Bytes, RpcError> {
        match self.result(state, block)? {
            ExecutionResult::Success { output, .. } => Ok(output.into_data()),
            ExecutionResult::Revert { output, .. } => Err(RpcError::Reverted(output)),
            ExecutionResult::Halt { reason, .. } => Err(RpcError::Refused(halt(&reason))),
        }
    }

    /// Gas with which the call succeeds: found by halving, from what it used upwards.
    pub(super) fn estimate(
        &mut self,
        state: &mut State<'_>,
        block: Surroundings,
    ) -> Result<u64, RpcError> {
        let mut high = self.tx.gas_limit;
        let mut low = match self.result(state, block)? {
            ExecutionResult::Success { gas, .. } => {
                // A plain payment needs the same gas always.
                let used = gas.tx_gas_used();
                if self.tx.data.is_empty() && self.suffices(used, state, block)? {
                    return Ok(used);
                }
                let optimistic = gas
                    .total_gas_spent()
                    .saturating_add(CALL_STIPEND)
                    .saturating_mul(64)
                    / 63;
                // Mostly this is enough, and then it is the upper bound.
                if optimistic < high && self.suffices(optimistic, state, block)? {
                    high = optimistic;
                }
                used.saturating_sub(1)
            }
            ExecutionResult::Revert { output, .. } => return Err(RpcError::Reverted(output)),
            ExecutionResult::Halt {
                reason: HaltReason::OutOfGas(_),
                ..
            } => {
                return Err(RpcError::Refused(format!(
                    "gas required exceeds allowance ({high})"
                )));
            }
            ExecutionResult::Halt { reason, .. } => return Err(RpcError::Refused(halt(&reason))),
        };
        while low + 1 < high {
            if (high - low) * 1_000 / high < ESTIMATE_SLACK_PER_MILLE {
                break;
            }
            let middle = low + (high - low) / 2;
            if self.suffices(middle, state, block)? {
                high = middle;
            } else {
                low = middle;
            }
        }
        Ok(high)
    }

    fn suffices(
        &mut self,
        gas: u64,
        state: &mut State<'_>,
        block: Surroundings,
    ) -> Result<bool, RpcError> {
        if state.deadline.is_some_and(|end| Instant::now() > end) {
            return Err(RpcError::Timeout);
        }
        self.tx.gas_limit = gas;
        match run(state, block, self.tx.clone(), Kind::Question) {
            Ok(done) => Ok(done.result.is_success()),
            Err(ExecuteError::Invalid(
                InvalidTransaction::CallGasCostMoreThanGasLimit { .. }
                | InvalidTransaction::GasFloorMoreThanGasLimit { .. },
            )) => Ok(false),
            Err(error) => Err(error.into_rpc(self.tx.caller)),
        }
    }

    fn result(
        &self,
        state: &mut State<'_>,
        block: Surroundings,
    ) -> Result<ExecutionResult, RpcError> {
        run(state, block, self.tx.clone(), Kind::Question)
            .map(|done| done.result)
            .map_err(|error| error.into_rpc(self.tx.caller))
    }
}

/// Why it did not run at all.
#[derive(Debug)]
enum ExecuteError {
    Invalid(InvalidTransaction),
    State(StateError),
    Evm(String),
}

fn run(
    state: &mut State<'_>,
    block: Surroundings,
    tx: TxEnv,
    kind: Kind,
) -> Result<ResultAndState, ExecuteError> {
    let surroundings = BlockEnv {
        number: U256::from(block.number),
        timestamp: U256::from(block.timestamp),
        gas_limit: BLOCK_GAS_LIMIT,
        basefee: 0,
        ..BlockEnv::default()
    };
    let mut evm = Context::mainnet()
        .with_db(state)
        .with_block(surroundings)
        .modify_cfg_chained(|cfg| {
            cfg.set_spec_and_mainnet_gas_params(SPEC);
            cfg.chain_id = CHAIN_ID;
            cfg.tx_gas_limit_cap = Some(BLOCK_GAS_LIMIT);
            if kind == Kind::Question {
                cfg.disable_nonce_check = true;
                cfg.disable_eip3607 = true;
                cfg.tx_chain_id_check = false;
            }
        })
        .build_mainnet();
    // Somebody else's bytes must not end the thread that mines, should the EVM have a flaw. Nothing
    // is half done after a panic: the EVM only reads, and the cache holds whole values.
    let done = catch_unwind(AssertUnwindSafe(|| evm.transact(tx)));
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(EVMError::Transaction(error))) => Err(ExecuteError::Invalid(error)),
        Ok(Err(EVMError::Database(error))) => Err(ExecuteError::State(error)),
        Ok(Err(other)) => Err(ExecuteError::Evm(other.to_string())),
        Err(_) => Err(ExecuteError::Evm("the EVM failed".to_owned())),
    }
}

impl ExecuteError {
    /// Clients look for these words. Source: geth `core/error.go`, `core/txpool/errors.go`.
    fn into_rpc(self, sender: Address) -> RpcError {
        use InvalidTransaction as Invalid;
        let error = match self {
            Self::State(StateError::Deadline) => return RpcError::Timeout,
            Self::State(StateError::Sqlite(error)) => return RpcError::from(error),
            Self::Evm(error) => return RpcError::Internal(error),
            Self::Invalid(error) => error,
        };
        RpcError::Refused(match error {
            Invalid::NonceTooLow { tx, state } => {
                format!("nonce too low: address {sender}, tx: {tx} state: {state}")
            }
            Invalid::NonceTooHigh { tx, state } => {
                format!("nonce too high: address {sender}, tx: {tx} state: {state}")
            }
            Invalid::LackOfFundForMaxFee { fee, balance } => format!(
                "insufficient funds for gas * price + value: address {sender} have {balance} want {fee}"
            ),
            Invalid::CallGasCostMoreThanGasLimit {
                initial_gas,
                gas_limit,
            } => format!("intrinsic gas too low: have {gas_limit}, want {initial_gas}"),
            Invalid::GasFloorMoreThanGasLimit {
                gas_floor,
                gas_limit,
            } => format!(
                "insufficient gas for floor data gas cost: have {gas_limit}, want {gas_floor}"
            ),
            Invalid::CallerGasLimitMoreThanBlock | Invalid::TxGasLimitGreaterThanCap { .. } => {
                format!("exceeds block gas limit: at most {BLOCK_GAS_LIMIT}")
            }
            Invalid::CreateInitCodeSizeLimit => "max initcode size exceeded".to_owned(),
            Invalid::RejectCallerWithCode => format!("sender not an eoa: address {sender}"),
            other => other.to_string(),
        })
    }
}

/// Why a run ended without an answer. Source: geth `core/vm/errors.go`.
fn halt(reason: &HaltReason) -> String {
    match reason {
        HaltReason::OutOfGas(_) => "out of gas".to_owned(),
        HaltReason::OpcodeNotFound => "invalid opcode".to_owned(),
        HaltReason::InvalidFEOpcode => "invalid opcode: INVALID".to_owned(),
        HaltReason::CreateContractSizeLimit => "max code size exceeded".to_owned(),
        other => other.to_string(),
    }
}
