//! `POST /v1/embeddings`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tenzro_protocol::inference::EmbedRequest;
use tenzro_protocol::openai::embeddings::{
    EmbeddingList, EmbeddingObject, EmbeddingRequest, EmbeddingUsage, EncodingFormat, Vector,
};

use super::completions::prompts_of;
use super::parameters::check_other;
use crate::bill::{Bill, Payer};
use crate::error::{ApiError, Failure};
use crate::extract::JsonBody;
use crate::provider::Provider;
use crate::state::AppState;

/// Embeds all inputs or none.
pub(crate) async fn create(
    State(state): State<AppState>,
    payer: Option<Extension<Payer>>,
    JsonBody(request): JsonBody<EmbeddingRequest>,
) -> Result<Response, Failure> {
    let admission = state.admit(&request.model)?;
    check_other(&request.other)?;
    let inputs = prompts_of(request.input, "input", state.limits.inputs_max)?;
    let inputs = EmbedRequest { inputs };
    let bill = match payer {
        Some(Extension(payer)) => {
            Some(Bill::for_inputs(&state, payer, &admission.model, &inputs).await?)
        }
        None => None,
    };
    let embeddings = state
        .inference
        .embed(&admission.model.id, inputs)
        .await
        .map_err(|error| ApiError::from_engine(&error, "input"))?;
    let length = embeddings.vectors.first().map_or(0, Vec::len);
    if request
        .dimensions
        .is_some_and(|wanted| wanted as usize != length)
    {
        return Err(ApiError::invalid(
            "dimensions",
            format!("this model's embeddings have {length} dimensions and cannot be shortened"),
        )
        .into());
    }
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let data = (0u32..)
        .zip(embeddings.vectors)
        .map(|(index, vector)| EmbeddingObject {
            object: "embedding".to_owned(),
            index,
            embedding: encode(vector, format),
        })
        .collect();
    let answer = Json(EmbeddingList {
        object: "list".to_owned(),
        data,
        model: admission.model.id,
        usage: EmbeddingUsage {
            prompt_tokens: embeddings.prompt_tokens,
            total_tokens: embeddings.prompt_tokens,
            cost: embeddings.cost,
        },
    });
    let answer = Provider::named(embeddings.provider, embeddings.cost).head(answer.into_response());
    match bill {
        Some(bill) => Ok(bill.settle_inputs(embeddings.prompt_tokens, answer).await?),
        None => Ok(answer),
    }
}

fn encode(vector: Vec<f32>, format: EncodingFormat) -> Vector {
    match format {
        EncodingFormat::Float => Vector::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    }
}
