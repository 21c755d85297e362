//! The one map from errors to HTTP: status, OpenAI's `type`, `code` and `param`, and the client's
//! text. What only the operator may read goes to the log.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tenzro_protocol::inference::GenerateError;
use tenzro_protocol::openai::{ErrorBody, ErrorObject};

use crate::billing::Refusal;

/// An error as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// 400: the field `param` is wrong.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
        }
    }

    /// 400: the field is known but not supported here.
    pub(crate) fn unsupported(param: &str) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::invalid(param, format!("{param} is not supported by this server"))
        }
    }

    /// 400: not JSON at all.
    pub(crate) fn not_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 404: no such model.
    pub(crate) fn unknown_model(name: &str, served: &[String]) -> Self {
        let name: String = name.chars().take(200).collect();
        Self {
            code: Some("model_not_found"),
            param: Some("model".to_owned()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "not_found_error",
                format!(
                    "the model '{name}' is not served here; served: {}",
                    served.join(", ")
                ),
            )
        }
    }

    /// 404: no such path.
    pub(crate) fn unknown_path(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found_error",
            format!("there is nothing at {path}"),
        )
    }

    /// 403: a page of another origin.
    pub(crate) fn foreign_page() -> Self {
        Self {
            code: Some("foreign_origin"),
            ..Self::new(
                StatusCode::FORBIDDEN,
                "permission_error",
                "pages of other origins may not call this node; its operator can allow them with the \
                 setting node.cors",
            )
        }
    }

    /// 401: what costs the node money is for its operator.
    pub(crate) fn not_operator() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "this node pays for its operator only: use the operator token (the file rpc.token in \
                 the node's home) as the API key",
            )
        }
    }

    /// 405.
    pub(crate) fn wrong_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "this path does not allow that method",
        )
    }

    /// 413.
    pub(crate) fn too_large(bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("the request is larger than {bytes_max} bytes"),
        )
    }

    /// 415.
    pub(crate) fn not_json_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "the request must have Content-Type: application/json",
        )
    }

    /// 408: the body takes too long.
    pub(crate) fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "the request body did not arrive in time",
        )
    }

    /// 415: compressed.
    pub(crate) fn encoded() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "the request must not be compressed: send it without Content-Encoding",
        )
    }

    /// 503.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            code: Some("unavailable"),
            retry_after: Some(Duration::from_secs(2)),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable_error",
                message,
            )
        }
    }

    /// What an engine refused or broke off. `prompt` names the field that holds the prompt.
    pub(crate) fn from_engine(error: &GenerateError, prompt: &str) -> Self {
        match error {
            GenerateError::ContextLength { .. } | GenerateError::UpstreamContextLength { .. } => {
                Self {
                    code: Some("context_length_exceeded"),
                    ..Self::invalid(prompt, error.to_string())
                }
            }
            GenerateError::QueueFull { retry_after, .. }
            | GenerateError::UpstreamBusy { retry_after, .. } => Self {
                code: Some("queue_full"),
                retry_after: Some(*retry_after),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    error.to_string(),
                )
            },
            GenerateError::Invalid { param, message } => {
                // The engine calls every prompt by one name.
                let param = match *param {
                    "prompt" | "messages" | "input" => prompt,
                    other => other,
                };
                Self::invalid(param, message.clone())
            }
            GenerateError::Unavailable { message } => Self::unavailable(message.clone()),
            GenerateError::Upstream { status, message } => {
                tracing::warn!(?status, message, "the upstream engine failed");
                Self {
                    code: Some("upstream_error"),
                    ..Self::new(StatusCode::BAD_GATEWAY, "server_error", error.to_string())
                }
            }
            GenerateError::Payment { code, message } => Self {
                code: Some(*code),
                ..Self::new(
                    StatusCode::PAYMENT_REQUIRED,
                    "payment_error",
                    message.clone(),
                )
            },
            GenerateError::Internal { message } => {
                tracing::error!(message, "a request failed");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "server_error",
                    "the server failed to answer; its log has the details",
                )
            }
        }
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The client's text.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The JSON body, also sent inside a stream that has begun.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                kind: self.kind.to_owned(),
                param: self.param.clone(),
                code: self.code.map(str::to_owned),
            },
        }
    }

    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after: None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(retry_after) = self.retry_after {
            let headers = response.headers_mut();
            // `retry-after` has whole seconds; the official clients prefer the other one.
            let seconds = retry_after.as_secs_f64().ceil() as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            let milliseconds = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            headers.insert("retry-after-ms", HeaderValue::from(milliseconds));
        }
        response
    }
}

/// Why a handler has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request, or its computation.
    Api(ApiError),
    /// Its payment.
    Payment(Refusal),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Payment(refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Api(error) => error.into_response(),
            Self::Payment(refusal) => refusal.into_response(),
        }
    }
}

impl Refusal {
    /// 400: the header with the payment is none.
    pub(crate) fn malformed(detail: &str) -> Self {
        Self {
            status: 400,
            challenge: None,
            retry_after: None,
            problem: json!({
                "type": "https://paymentauth.org/problems/malformed-credential",
                "title": "Malformed Credential",
                "status": 400,
                "detail": detail,
            }),
        }
    }

    /// The last part of the problem's type.
    pub(crate) fn problem_name(&self) -> &str {
        let kind = self.problem["type"].as_str().unwrap_or_default();
        match kind.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => "other",
        }
    }

    /// The same for clients that only know OpenAI's errors.
    fn openai_error(&self) -> ErrorObject {
        let text = |name: &str| self.problem[name].as_str();
        let message = text("detail").or(text("title"));
        let (kind, code) = match self.status {
            402 => ("payment_required_error", "payment_required".to_owned()),
            status => {
                let kind = match status {
                    429 => "rate_limit_error",
                    500.. => "service_unavailable_error",
                    _ => "invalid_request_error",
                };
                (kind, self.problem_name().replace('-', "_"))
            }
        };
        ErrorObject {
            message: message.unwrap_or("the payment was refused").to_owned(),
            kind: kind.to_owned(),
            param: None,
            code: Some(code),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(mut self) -> Response {
        let error = self.openai_error();
        if let Some(problem) = self.problem.as_object_mut() {
            problem.insert("error".to_owned(), json!(error));
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, content_type, self.problem.to_string()).into_response();
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge.map(HeaderValue::try_from) {
            match challenge {
                Ok(challenge) => drop(headers.insert(header::WWW_AUTHENTICATE, challenge)),
                Err(error) => tracing::error!(%error, "a payment challenge that is no header"),
            }
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
