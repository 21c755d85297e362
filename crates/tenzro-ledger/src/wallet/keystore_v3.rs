//! Checks a keystore file before it is decrypted, so that a damaged file is told from a wrong password
//! and a hostile one cannot exhaust memory. Source: Ethereum wiki, "Web3 Secret Storage Definition".

use alloy::primitives::hex;
use serde_json::Value;

/// Memory of scrypt at most: 128 · n · r bytes. Wallets in use take 256 MiB.
const SCRYPT_BYTES_MAX: u64 = 1 << 30;
/// Work of scrypt at most: n · r · p. Wallets in use take 2^21.
const SCRYPT_WORK_MAX: u64 = 1 << 24;
/// Rounds of PBKDF2 at most; wallets in use take 262,144 to 1,000,000.
const PBKDF2_ROUNDS_MAX: u64 = 10_000_000;

/// The file with the names that the definition gives; otherwise what is wrong with it.
pub(super) fn checked(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut content: Value =
        serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let file = content.as_object_mut().ok_or("no JSON object")?;
    // ethers, and geth of old, write a capital.
    if let Some(crypto) = file.remove("Crypto") {
        file.insert("crypto".to_owned(), crypto);
    }
    if file.get("version").and_then(Value::as_u64) != Some(3) {
        return Err("the version is not 3".to_owned());
    }
    let crypto = file.get("crypto").ok_or("there is no 'crypto'")?;
    if crypto["cipher"] != "aes-128-ctr" {
        return Err("the cipher is not aes-128-ctr".to_owned());
    }
    has_bytes(&crypto["cipherparams"], "iv", Some(16))?;
    has_bytes(crypto, "ciphertext", Some(32))?;
    has_bytes(crypto, "mac", Some(32))?;
    let parameters = &crypto["kdfparams"];
    has_bytes(parameters, "salt", None)?;
    let number = |name: &str| {
        let number = parameters[name].as_u64();
        number.ok_or_else(|| format!("there is no '{name}'"))
    };
    if number("dklen")? != 32 {
        return Err("'dklen' is not 32".to_owned());
    }
    let is_sound = match crypto["kdf"].as_str() {
        Some("scrypt") => {
            let (n, r, p) = (number("n")?, number("r")?, number("p")?);
            let cells = n.saturating_mul(r);
            // RFC 7914 §6: n below 2^(128 · r / 8).
            n.is_power_of_two()
                && n > 1
                && r > 0
                && u64::from(n.ilog2()) < r.saturating_mul(16)
                && p > 0
                && cells.saturating_mul(128) <= SCRYPT_BYTES_MAX
                && cells.saturating_mul(p) <= SCRYPT_WORK_MAX
        }
        Some("pbkdf2") => {
            parameters["prf"] == "hmac-sha256" && (1..=PBKDF2_ROUNDS_MAX).contains(&number("c")?)
        }
        _ => return Err("the key derivation is neither scrypt nor pbkdf2".to_owned()),
    };
    if !is_sound {
        return Err("the parameters of the key derivation cannot be right".to_owned());
    }
    Ok(content.to_string().into_bytes())
}

fn has_bytes(object: &Value, name: &str, count: Option<usize>) -> Result<(), String> {
    let text = object[name].as_str();
    let text = text.ok_or_else(|| format!("there is no '{name}'"))?;
    let bytes = hex::decode(text).map_err(|_| format!("'{name}' is not hexadecimal"))?;
    match count {
        Some(count) if bytes.len() != count => Err(format!("'{name}' has not {count} bytes")),
        _ => Ok(()),
    }
}
