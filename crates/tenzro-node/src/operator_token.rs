//! The operator token: whoever can read `rpc.token` in the home may act with the node's wallet.

use std::io;

use rand::TryRng;
use rand::rngs::SysRng;

use crate::home::{Home, replace_file};

/// The token, when a node of this home made one.
pub fn operator_token(home: &Home) -> Option<String> {
    let text = std::fs::read_to_string(home.operator_token_file()).ok()?;
    let token = text.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// The token; made, for the owner's eyes only, where there is none. 256 random bits in hexadecimal.
pub(crate) fn ensure_operator_token(home: &Home) -> io::Result<String> {
    if let Some(token) = operator_token(home) {
        return Ok(token);
    }
    let mut bytes = [0u8; 32];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(io::Error::other)?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::create_dir_all(home.root())?;
    replace_file(&home.operator_token_file(), token.as_bytes())?;
    Ok(token)
}
