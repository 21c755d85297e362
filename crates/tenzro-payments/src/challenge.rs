//! Challenges: made without state, known again by their HMAC.
//!
//! The secret lives as long as the process. A credential for a challenge from before a restart is answered
//! with a new challenge, so that no used nonce has to be remembered over restarts.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use alloy::primitives::{B256, hex};
use jiff::Timestamp;
use mpp::protocol::core::{Base64UrlJson, ChallengeEcho, PaymentChallenge};

use crate::refusal::Refusal;
use crate::sync::lock;
use crate::wire::{INTENT, METHOD, SessionRequest};

/// How long a challenge, and the price in it, can be answered. Source: the draft's examples.
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);
/// How long the same challenge is given out: an unpaid request then costs a copy.
const FRESH: Duration = Duration::from_secs(20);

/// Makes challenges and knows them again.
#[derive(Debug)]
pub(crate) struct Challenges {
    realm: String,
    secret: Secret,
    last: Mutex<Option<(Instant, SessionRequest, String)>>,
}

struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl Challenges {
    /// `realm` names what is protected: the host of the server.
    pub(crate) fn new(realm: String) -> Self {
        Self {
            realm,
            secret: Secret(hex::encode(random())),
            last: Mutex::new(None),
        }
    }

    /// Value of `WWW-Authenticate` for these terms.
    pub(crate) fn header(&self, terms: &SessionRequest) -> String {
        let mut last = lock(&self.last);
        if let Some((at, known, header)) = &*last
            && at.elapsed() < FRESH
            && known == terms
        {
            return header.clone();
        }
        let request = Base64UrlJson::from_typed(terms).expect("plain data is always JSON");
        let expires = Timestamp::now() + LIFETIME;
        let challenge = PaymentChallenge::with_secret_key_full(
            &self.secret.0,
            &self.realm,
            METHOD,
            INTENT,
            request,
            // Whole seconds.
            Some(&format!("{expires:.0}")),
            None,
            None,
            None,
            None,
        );
        let header = challenge.to_header().expect("no line breaks in it");
        *last = Some((Instant::now(), terms.clone(), header.clone()));
        header
    }

    /// The terms of the challenge that a credential answers.
    pub(crate) fn terms(&self, echo: &ChallengeEcho) -> Result<SessionRequest, Refusal> {
        let challenge = PaymentChallenge {
            id: echo.id.clone(),
            realm: echo.realm.clone(),
            method: echo.method.clone(),
            intent: echo.intent.clone(),
            request: echo.request.clone(),
            expires: echo.expires.clone(),
            description: None,
            digest: echo.digest.clone(),
            opaque: echo.opaque.clone(),
            header: None,
        };
        // Without an end it would not be one of these.
        let is_known = challenge.verify(&self.secret.0) && challenge.expires.is_some();
        if !is_known || challenge.is_expired() {
            return Err(Refusal::Challenge);
        }
        challenge.request.decode().map_err(|_| Refusal::Challenge)
    }
}

/// 256 bits that nobody can guess.
pub(crate) fn random() -> B256 {
    use rand::TryRng;
    let mut bytes = B256::ZERO;
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes.0)
        .expect("the system has random numbers");
    bytes
}
