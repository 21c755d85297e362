//! What all HTTP clients here share.

use std::error::Error;

use reqwest::{Client, ClientBuilder};

/// A builder with the TLS of this program.
pub(crate) fn builder() -> ClientBuilder {
    // Another part of the process may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
}

/// The reason at the bottom, such as "Connection refused": what is above it names the URL again.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}
