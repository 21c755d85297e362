//! Asks an endpoint what it serves. Registered addresses are somebody else's text, so a name is
//! resolved once, every address is checked, and the connection goes to a checked address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use tenzro_protocol::inference::ModelCard;
use tenzro_protocol::model_id::is_meant;
use tenzro_protocol::openai::ModelList;

use crate::http_client::{self, innermost};

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// How long an endpoint may send nothing at all while it answers. Servers like ours send a comment every 10
/// seconds; before the first one a deposit may have to be confirmed.
const SILENCE: Duration = Duration::from_secs(120);

/// Time for the whole probe.
const PROBE: Duration = Duration::from_secs(5);

/// Largest list of models.
const LIST_BYTES_MAX: usize = 1 << 20;

/// Longest address; the contract allows no more.
const URL_BYTES_MAX: usize = 256;

/// Why an endpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("endpoint: '{url}' cannot be used: {reason}")]
    Url { url: String, reason: &'static str },
    #[error("endpoint: {0} is an address of a private network")]
    Private(String),
    #[error("endpoint: {url} does not answer: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("endpoint: {url} is no OpenAI-compatible server: {reason}")]
    Refused { url: String, reason: String },
    #[error("endpoint: {url} does not serve {model}; it serves {served}")]
    OtherModel {
        url: String,
        model: String,
        served: String,
    },
}

/// What a probe found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) card: ModelCard,
    pub(crate) latency: Duration,
}

/// Probes endpoints; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    http: Client,
    allow_private: bool,
}

impl Prober {
    /// `allow_private` allows addresses of this machine and of private networks.
    pub(crate) fn new(allow_private: bool) -> Result<Self, reqwest::Error> {
        let http = http_client::builder()
            .connect_timeout(CONNECT)
            .timeout(PROBE)
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(CheckedResolver { allow_private })
            .build()?;
        Ok(Self {
            http,
            allow_private,
        })
    }

    /// Whether it connects to private networks.
    pub(crate) fn allows_private(&self) -> bool {
        self.allow_private
    }

    /// The address as it is registered: checked, and without a slash at its end.
    pub(crate) fn check(&self, url: &str) -> Result<String, ProbeError> {
        let wrong = |reason| ProbeError::Url {
            // A user or a password before the host is nobody else's business.
            url: without_user(url).chars().take(URL_BYTES_MAX).collect(),
            reason,
        };
        let url = url.trim_end_matches('/');
        if url.len() > URL_BYTES_MAX {
            return Err(wrong("it is longer than 256 bytes"));
        }
        let parsed: Url = url.parse().map_err(|_| wrong("it is no URL"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(wrong("it must be http or https"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong("it must not hold a user or a password"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("it must not have a query or a fragment"));
        }
        if !parsed.path().ends_with("/v1") {
            return Err(wrong("it must end in /v1"));
        }
        let host = parsed.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>()
            && !self.allow_private
            && !is_public(ip)
        {
            return Err(ProbeError::Private(host.to_owned()));
        }
        Ok(url.to_owned())
    }

    /// A client for requests to checked addresses, without a limit on the time of an answer.
    pub(crate) fn client(&self) -> Result<Client, reqwest::Error> {
        let allow_private = self.allow_private;
        http_client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .tcp_nodelay(true)
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(CheckedResolver { allow_private })
            .build()
    }

    /// Asks for the list of models and looks for that one.
    pub(crate) async fn probe(&self, url: &str, model: &str) -> Result<Found, ProbeError> {
        let url = self.check(url)?;
        let started = Instant::now();
        let list = self.models(&url).await?;
        let latency = started.elapsed();
        let served: Vec<String> = list
            .data
            .iter()
            .map(|entry| entry.card.id.clone())
            .collect();
        let found = list.data.into_iter().map(|entry| entry.card).find(|card| {
            std::iter::once(&card.id)
                .chain(&card.aliases)
                .any(|name| is_meant(model, name))
        });
        match found {
            Some(card) => Ok(Found { card, latency }),
            None => Err(ProbeError::OtherModel {
                model: model.to_owned(),
                served: served.join(", ").chars().take(200).collect(),
                url,
            }),
        }
    }

    async fn models(&self, url: &str) -> Result<ModelList, ProbeError> {
        let unreachable = |error: reqwest::Error| ProbeError::Unreachable {
            url: url.to_owned(),
            reason: innermost(&error),
        };
        let refused = |reason: String| ProbeError::Refused {
            url: url.to_owned(),
            reason,
        };
        let sent = self.http.get(format!("{url}/models")).send().await;
        let mut response = sent.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(refused(format!("it answers {}", response.status())));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > LIST_BYTES_MAX {
                return Err(refused("its list of models is too large".to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&bytes)
            .map_err(|_| refused("it does not list models as OpenAI does".to_owned()))
    }
}

fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    }
}

/// Resolves names and keeps the addresses that may be used. Literal addresses never come here.
struct CheckedResolver {
    allow_private: bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let resolved = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<SocketAddr> = resolved
                .filter(|address| allow_private || is_public(address.ip()))
                .collect();
            if usable.is_empty() {
                let reason = format!("{} leads to a private network", name.as_str());
                return Err(reason.into());
            }
            let addresses: Addrs = Box::new(usable.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether an address belongs to the public internet. Source: the IANA special-purpose registries.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // Shared by carriers (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544).
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (18..20).contains(&b));
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match [a, b, c, d, e, f] {
        // Mapped and compatible, then NAT64: the address inside counts.
        [0, 0, 0, 0, 0, 0 | 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => is_public_v4(v4(g, h)),
        // 6to4 (RFC 3056) carries one as well.
        [0x2002, b, c, ..] => is_public_v4(v4(b, c)),
        // Only this part is given out for the public internet; documentation and tunnels lie in it.
        [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..0x1000, ..] => false,
        _ => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_private_networks_are_refused_in_every_form() {
        let prober = Prober::new(false).expect("a client");
        for host in [
            "127.0.0.1",
            "127.1",
            "127.255.255.254",
            "0.0.0.0",
            "0",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "10.0.0.1",
            "10.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:7f00:1::]",
            "[2002:a00:1::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
            "[2001:db8::1]",
            "[2001::1]",
            "[100::1]",
        ] {
            let error = prober.check(&format!("http://{host}:8080/v1"));
            assert!(
                matches!(error, Err(ProbeError::Private(_))),
                "{host}: {error:?}"
            );
        }
        for host in [
            "1.1.1.1",
            "8.8.8.8",
            "[2606:4700::1111]",
            "100.63.0.1",
            "172.32.0.1",
        ] {
            prober.check(&format!("https://{host}/v1")).expect(host);
        }
        let open = Prober::new(true).expect("a client");
        open.check("http://127.0.0.1:8080/v1").expect("allowed");
    }

    #[test]
    fn only_plain_addresses_that_end_in_v1_are_taken() {
        let prober = Prober::new(true).expect("a client");
        let long = format!("http://example.com/{}/v1", "a".repeat(256));
        for url in [
            "",
            "example.com/v1",
            "ftp://example.com/v1",
            "file:///v1",
            "http://user@example.com/v1",
            "http://user:pass@example.com/v1",
            "http://example.com/v1?x=1",
            "http://example.com/v1#x",
            "http://example.com",
            "http://example.com/v2",
            long.as_str(),
        ] {
            assert!(prober.check(url).is_err(), "{url}");
        }
        let secret = prober.check("http://ada:secret@example.com/v1");
        let refusal = secret.expect_err("a password").to_string();
        assert!(!refusal.contains("secret"), "{refusal}");
        let url = prober.check("https://example.com/api/v1/").expect("valid");
        assert_eq!(url, "https://example.com/api/v1");
    }

    #[tokio::test]
    async fn names_that_lead_to_this_machine_are_refused() {
        let prober = Prober::new(false).expect("a client");
        let error = prober.probe("http://localhost:1/v1", "m").await;
        let error = error.expect_err("private").to_string();
        assert!(error.contains("private network"), "{error}");
    }
}
