//! Accounts, storage and code as of a block: what the EVM reads, and the rows that a transaction
//! leaves behind.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use alloy::primitives::{Address, B256, KECCAK256_EMPTY, U256};
use revm::Database;
use revm::bytecode::Bytecode;
use revm::database_interface::DBErrorMarker;
use revm::state::{AccountInfo, EvmState};
use rusqlite::{Connection, OptionalExtension, params};

use super::store;

/// Contracts whose code stays at hand, analysed.
const CODES: usize = 1_024;
/// Accounts and slots that the writer keeps at hand: some 20 MiB.
const CACHED: usize = 200_000;

/// Why the EVM cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    /// The file cannot be read.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The call takes too long.
    #[error("execution aborted: it takes too long")]
    Deadline,
}

impl DBErrorMarker for StateError {}

/// Code by its hash, which never changes: shared by all readers and the writer.
#[derive(Debug, Default)]
pub(super) struct Codes {
    known: Mutex<HashMap<B256, Bytecode>>,
}

impl Codes {
    fn get(&self, conn: &Connection, hash: B256) -> rusqlite::Result<Bytecode> {
        if let Some(code) = self.lock().get(&hash) {
            return Ok(code.clone());
        }
        let bytes: Vec<u8> = conn
            .prepare_cached("SELECT code FROM code WHERE hash = ?1")?
            .query_row([hash.as_slice()], |row| row.get(0))?;
        let code = Bytecode::new_raw(bytes.into());
        let mut known = self.lock();
        if known.len() >= CODES {
            known.clear();
        }
        known.insert(hash, code.clone());
        Ok(code)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<B256, Bytecode>> {
        // A map of whole values: a panic elsewhere leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was read, or written, since it was last emptied.
#[derive(Debug, Default)]
pub(super) struct Cache {
    accounts: HashMap<Address, Option<AccountInfo>>,
    storage: HashMap<(Address, U256), U256>,
}

impl Cache {
    /// Forgets all: the file was taken back, or a transaction of it was given up.
    pub(super) fn clear(&mut self) {
        self.accounts.clear();
        self.storage.clear();
    }

    /// Forgets all when it grew too large.
    pub(super) fn bound(&mut self) {
        if self.accounts.len() + self.storage.len() > CACHED {
            self.clear();
        }
    }
}

/// The state at the end of a block.
#[derive(Debug)]
pub(super) struct State<'a> {
    pub(super) conn: &'a Connection,
    /// Rows of later blocks are not seen.
    pub(super) block: u64,
    pub(super) codes: &'a Codes,
    pub(super) cache: &'a mut Cache,
    /// When reading ends with an error; the writer has none, gas bounds it.
    pub(super) deadline: Option<Instant>,
}

impl Database for State<'_> {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        if let Some(known) = self.cache.accounts.get(&address) {
            return Ok(known.clone());
        }
        self.check_deadline()?;
        let account = account(self.conn, address, self.block)?;
        self.cache.accounts.insert(address, account.clone());
        Ok(account)
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, StateError> {
        Ok(self.codes.get(self.conn, code_hash)?)
    }

    fn storage(&mut self, address: Address, slot: U256) -> Result<U256, StateError> {
        if let Some(known) = self.cache.storage.get(&(address, slot)) {
            return Ok(*known);
        }
        self.check_deadline()?;
        let value = storage(self.conn, address, slot, self.block)?;
        self.cache.storage.insert((address, slot), value);
        Ok(value)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        let hash = store::hash_of(self.conn, number)?;
        Ok(hash.unwrap_or_default())
    }
}

impl State<'_> {
    fn check_deadline(&self) -> Result<(), StateError> {
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(StateError::Deadline),
            _ => Ok(()),
        }
    }

    /// Keeps what a transaction changed, as rows of `block`.
    pub(super) fn write(&mut self, block: u64, changes: EvmState) -> rusqlite::Result<()> {
        for (address, account) in changes {
            if !account.is_touched() {
                continue;
            }
            // Since Cancun (EIP-6780) only what was created in the same transaction is destroyed:
            // there are no older rows of its storage.
            let is_gone = account.is_selfdestructed();
            let info = if is_gone {
                AccountInfo::default()
            } else {
                account.info
            };
            let before = self.cache.accounts.get(&address).cloned().flatten();
            if info != before.unwrap_or_default() {
                write_account(self.conn, address, block, &info)?;
                if let Some(code) = info.code.as_ref().filter(|code| !code.is_empty()) {
                    write_code(self.conn, info.code_hash, code)?;
                }
            }
            let known = AccountInfo { code: None, ..info };
            let known = Some(known).filter(|info| !info.is_empty());
            self.cache.accounts.insert(address, known);
            if is_gone {
                continue;
            }
            for (slot, value) in &account.storage {
                if value.is_changed() {
                    write_storage(self.conn, address, *slot, block, value.present_value)?;
                    self.cache
                        .storage
                        .insert((address, *slot), value.present_value);
                }
            }
        }
        Ok(())
    }
}

/// The account as of a block; `None` when it is empty (EIP-161).
pub(super) fn account(
    conn: &Connection,
    address: Address,
    block: u64,
) -> rusqlite::Result<Option<AccountInfo>> {
    let mut statement = conn.prepare_cached(
        "SELECT nonce, balance, code_hash FROM account
         WHERE address = ?1 AND block <= ?2 ORDER BY block DESC LIMIT 1",
    )?;
    let found = statement
        .query_row(params![address.as_slice(), store::signed(block)], |row| {
            Ok(AccountInfo {
                nonce: store::unsigned(row, 0)?,
                balance: U256::from_be_bytes(row.get::<_, [u8; 32]>(1)?),
                code_hash: row.get::<_, [u8; 32]>(2)?.into(),
                code: None,
                account_id: None,
            })
        })
        .optional()?;
    Ok(found.filter(|info| !info.is_empty()))
}

/// A storage slot as of a block.
pub(super) fn storage(
    conn: &Connection,
    address: Address,
    slot: U256,
    block: u64,
) -> rusqlite::Result<U256> {
    let mut statement = conn.prepare_cached(
        "SELECT value FROM storage
         WHERE address = ?1 AND slot = ?2 AND block <= ?3 ORDER BY block DESC LIMIT 1",
    )?;
    let key = slot.to_be_bytes::<32>();
    let found = statement
        .query_row(
            params![address.as_slice(), key, store::signed(block)],
            |row| {
                let value = row.get_ref(0)?.as_blob()?;
                Ok(U256::try_from_be_slice(value).unwrap_or_default())
            },
        )
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// The code of an account as of a block, as `eth_getCode` shows it.
pub(super) fn code(
    conn: &Connection,
    codes: &Codes,
    address: Address,
    block: u64,
) -> rusqlite::Result<Bytecode> {
    match account(conn, address, block)? {
        Some(info) if info.code_hash != KECCAK256_EMPTY => codes.get(conn, info.code_hash),
        _ => Ok(Bytecode::default()),
    }
}

pub(super) fn write_account(
    conn: &Connection,
    address: Address,
    block: u64,
    info: &AccountInfo,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO account (address, block, nonce, balance, code_hash)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        address.as_slice(),
        store::signed(block),
        store::signed(info.nonce),
        info.balance.to_be_bytes::<32>(),
        info.code_hash.as_slice(),
    ])?;
    Ok(())
}

fn write_code(conn: &Connection, hash: B256, code: &Bytecode) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR IGNORE INTO code (hash, code) VALUES (?1, ?2)")?
        .execute(params![hash.as_slice(), code.original_byte_slice()])?;
    Ok(())
}

fn write_storage(
    conn: &Connection,
    address: Address,
    slot: U256,
    block: u64,
    value: U256,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO storage (address, slot, block, value) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        address.as_slice(),
        slot.to_be_bytes::<32>(),
        store::signed(block),
        value.to_be_bytes_trimmed_vec(),
    ])?;
    Ok(())
}
