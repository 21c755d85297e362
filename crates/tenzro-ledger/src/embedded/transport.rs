//! The chain as an alloy transport: the same provider as over HTTP, without a socket.

use std::task::{Context, Poll};

use alloy::rpc::json_rpc::{
    RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest,
};
use alloy::transports::{TransportError, TransportFut};
use futures::future::join_all;
use tower::Service;

use super::EmbeddedChain;

/// Hands requests to the chain.
#[derive(Debug, Clone)]
pub(super) struct InProcess {
    pub(super) chain: EmbeddedChain,
}

impl InProcess {
    async fn single(&self, request: &SerializedRequest) -> Response {
        let answer = self.chain.request(request.method(), request.params());
        Response {
            id: request.id().clone(),
            payload: match answer.await {
                Ok(value) => ResponsePayload::Success(value),
                Err(error) => ResponsePayload::Failure(error),
            },
        }
    }
}

impl Service<RequestPacket> for InProcess {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            Ok(match packet {
                RequestPacket::Single(request) => {
                    ResponsePacket::Single(this.single(&request).await)
                }
                // At the same time, and begun in order: transactions of one batch share a commit.
                RequestPacket::Batch(requests) => ResponsePacket::Batch(
                    join_all(requests.iter().map(|request| this.single(request))).await,
                ),
            })
        })
    }
}
